//! `freezer-guard restore`: drives CRIU while nobody freezes what it restores into.

use std::{fs, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use freezer_guard::{
    cgroup,
    criu::{self, Evidence, Log},
};
use serde_json::json;

use super::{
    driver::{self, Driver, word},
    exit,
    guarded::{self, Work},
    say,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the images are
    #[arg(long, short = 'D', value_name = "DIR")]
    images_dir: PathBuf,
    /// Guard this cgroup: the directory of the one that the tree is put into. Without
    /// it, the one that it was in, as DIR/freezer-guard.json says
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,
    /// Print what came of it as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    driver: Driver,
}

impl Args {
    pub(super) fn is_verbose(&self) -> bool {
        self.driver.options.is_verbose()
    }

    /// Where the tree goes.
    fn places(&self) -> Result<Vec<PathBuf>> {
        let evidence = Evidence::of_whole_images(&self.images_dir)?;
        match evidence {
            _ if !self.cgroups.is_empty() => Ok(self.cgroups.clone()),
            Some(evidence) => Ok(evidence.cgroups),
            None => Err(criu::Error::NoCgroup(self.images_dir.clone()).into()),
        }
    }
}

/// CRIU's log in the folder of images.
const LOG: &str = "restore.log";

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let options = &args.driver.options;
    let places = args.places()?;
    let criu = args.driver.find()?;
    let mut made = false;
    for place in &places {
        if !place.exists() {
            fs::create_dir_all(place).with_context(|| format!("make {}", place.display()))?;
            made = true;
        }
    }
    let targets = cgroup::open_all(&places)?;
    let mut command = vec![word(criu.path())?, "restore".to_owned(), "-D".to_owned()];
    command.push(word(&args.images_dir)?);
    command.extend(["-o", LOG, "-v4", "-d"].map(str::to_owned));
    let manages = |option: &String| option.starts_with("--manage-cgroups");
    if made && !args.driver.more.iter().any(manages) {
        // CRIU would take one that we have made for one that has its settings.
        command.push("--manage-cgroups=full".to_owned());
    }
    command.extend(args.driver.more.iter().cloned());
    let done = guarded::run(Work {
        options,
        targets,
        named: true,
        root: None,
        freeze: true,
        thaw: true,
        restores: true,
        command: &command,
        watch: None,
    })?;

    let (held, excused) = (done.held(), done.is_excused(options));
    let code = done.code();
    let restored = code == exit::SUCCESS;
    let roots = match restored {
        true => {
            let cgroups: Vec<_> = cgroup::open_all(&places)?.into_iter().flatten().collect();
            cgroup::roots(&cgroups.iter().collect::<Vec<_>>())?
        }
        false => Vec::new(),
    };
    if !restored {
        driver::say_failure(&Log::new(&args.images_dir, LOG));
    } else if !held {
        say(format_args!(
            "CRIU has restored it even so: look whether it works as it should"
        ));
    }
    for root in &roots {
        options.step(format_args!("pid {} ({}) runs", root.pid, root.comm));
    }
    if args.json {
        let object = json!({
            "restored": restored,
            "exit_code": code.0,
            "roots": roots,
            "guard": done.guard,
        });
        writeln!(std::io::stdout(), "{object}")?;
    }
    Ok(match held || excused {
        true => code.into(),
        false => exit::VIOLATED.into(),
    })
}
