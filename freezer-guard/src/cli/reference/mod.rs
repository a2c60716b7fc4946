//! `freezer-guard generate`: the reference, made from the code. It is no subcommand, so the
//! reference does not have it.
//!
//! `generate DIR` writes the files of the packages: manual pages, completions, the Varlink interface and
//! JSON schemas. `generate --reference ROOT` writes the files of the repository at ROOT: the chapters
//! in `docs/reference` and `packaging/config.toml`. A test fails if these differ from the code.

mod book;
mod commands;
mod manual;
mod markdown;
mod pages;
mod registration;
mod schemas;
#[cfg(test)]
mod tests;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Command;
use freezer_guard::guard::chain;

use commands::COMMANDS;

use super::{
    error::{Error, Result},
    exit,
    say::say,
};
use crate::daemon::{config::keys, varlink};

/// A file: its path below some directory, and its text.
type File = (PathBuf, String);

/// Does it if the command line asks for it. `command`: the whole command line.
pub(super) fn asked(command: fn() -> Command) -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != "generate" {
        return None;
    }
    let arguments: Vec<_> = arguments.collect();
    let done = match &arguments[..] {
        [option, root] if option == "--reference" => {
            let root = Path::new(root);
            of_repository(&command(), root).and_then(|files| write(root, files))
        }
        [dir] => for_packages(&command()).and_then(|files| write(Path::new(dir), files)),
        _ => {
            say(format_args!(
                "usage: freezer-guard generate DIR, or generate --reference ROOT"
            ));
            return Some(exit::USAGE.into());
        }
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{}", chain(&error)));
            exit::INTERNAL.into()
        }
    })
}

/// Adds the examples of the reference to the long help of each subcommand.
pub(super) fn with_examples(command: Command) -> Command {
    command.mut_subcommands(|inner| {
        let name = inner.get_name();
        let reference = COMMANDS.iter().find(|known| known.command == name);
        let examples = reference.map(|known| known.examples).unwrap_or_default();
        if examples.is_empty() {
            return inner;
        }
        let mut text = "Examples:".to_owned();
        for (about, lines) in examples {
            let lines = lines.replace('\n', "\n    ");
            text += &format!("\n  {}\n    {lines}\n", about.replace('`', ""));
        }
        inner.after_long_help(text.trim_end().to_owned())
    })
}

fn write(root: &Path, files: Vec<File>) -> Result<()> {
    for (path, text) in files {
        let path = root.join(path);
        let dir = path.parent().unwrap_or(root);
        fs::create_dir_all(dir).map_err(Error::io(format!("create {}", dir.display())))?;
        fs::write(&path, text).map_err(Error::io(format!("write {}", path.display())))?;
    }
    Ok(())
}

/// The files that packages install, which freezer-guard/Cargo.toml lists.
fn for_packages(command: &Command) -> Result<Vec<File>> {
    let mut files = pages::all(command)?;
    files.extend(registration::all()?);
    files.push(("io.freezerguard.varlink".into(), varlink::description()));
    files.extend(schemas::all("schemas")?);
    Ok(files)
}

/// The files of the repository that the code decides over. Those with text of their own are read
/// below `root`, and their tables replaced.
fn of_repository(command: &Command, root: &Path) -> Result<Vec<File>> {
    let mut files = book::chapters(command, root)?;
    files.extend(schemas::all("docs/reference/schemas")?);
    files.push(("packaging/config.toml".into(), keys::installed_file()));
    Ok(files)
}
