//! `freezer-guard generate DIR`: man pages and completions, for packages.

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use freezer_guard::guard::chain;

use super::{
    error::{Error, Result},
    exit,
    say::say,
};

const NAME: &str = "freezer-guard";

/// What lies where, for freezer-guard(1).
const FILES: [(&str, &str); 4] = [
    (
        "/etc/freezer-guard/config.toml",
        "What the daemon goes by. Each key is in it with its default, as a comment.",
    ),
    (
        "/run/freezer-guard/io.freezerguard",
        "The daemon's socket, which speaks Varlink.",
    ),
    (
        "/sys/fs/bpf/freezer-guard",
        "The state of all guards: BPF maps and programs. Empty or missing while \
         there is none.",
    ),
    (
        "/var/lib/freezer-guard",
        "What the daemon keeps over a reboot.",
    ),
];

/// Does it when that is what the command line asks for. It is no subcommand:
/// so the pages and completions do not know of it.
/// `command`: ours.
pub(super) fn asked(command: fn() -> Command) -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != "generate" {
        return None;
    }
    let Some(dir) = arguments.next().map(PathBuf::from) else {
        say(format_args!("generate needs a directory"));
        return Some(exit::USAGE.into());
    };
    Some(match generate(&dir, &command()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{}", chain(&error)));
            exit::INTERNAL.into()
        }
    })
}

fn generate(dir: &Path, command: &Command) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(format!("create {}", dir.display())))?;
    clap_mangen::generate_to(command.clone(), dir).map_err(Error::io("write the man pages"))?;
    // The first one again, with sections of ours.
    let page = dir.join(format!("{NAME}.1"));
    let mut bytes = Vec::new();
    main_page(command, &mut bytes).map_err(Error::io("make the first man page"))?;
    fs::write(&page, bytes).map_err(Error::io(format!("write {}", page.display())))?;
    for (shell, file) in [
        (Shell::Bash, "freezer-guard.bash"),
        (Shell::Zsh, "_freezer-guard"),
        (Shell::Fish, "freezer-guard.fish"),
    ] {
        let path = dir.join(file);
        let mut file =
            File::create(&path).map_err(Error::io(format!("create {}", path.display())))?;
        clap_complete::generate(shell, &mut command.clone(), NAME, &mut file);
    }
    Ok(())
}

fn main_page(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone().disable_help_subcommand(true));
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    man.render_subcommands_section(page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    // Line by line as it is: it is a table.
    roff.control("nf", []);
    for line in exit::HELP.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("SH", ["FILES"]);
    for (path, text) in FILES {
        roff.control("TP", []);
        roff.text([bold(path)]);
        roff.text([roman(text)]);
    }
    roff.to_writer(page)?;
    man.render_version_section(page)?;
    page.flush()
}
