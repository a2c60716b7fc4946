//! `freezer-guard restore`: drives CRIU while nobody freezes what it restores into.

use std::{ffi::OsString, os::unix::ffi::OsStrExt as _, path::PathBuf, process::ExitCode};

use clap::ValueHint;
use clap_complete::engine::ArgValueCompleter;
use freezer_guard::{
    cgroup::{self, CreatedCgroups, Task},
    criu::{self, Criu, Known, Log},
    guard::Status,
    words::escaped,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    complete,
    driver::{self, Driver},
    error::Result,
    exit,
    guarded::{self, GuardedCommand, Options},
    say::say,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The directory of the image
    #[arg(long, short = 'D', value_name = "DIR", value_hint = ValueHint::DirPath)]
    images_dir: PathBuf,
    /// Guard this cgroup: the directory of the one that CRIU restores the tree into
    ///
    /// Repeat the option to guard several. By default freezer-guard takes the cgroups from
    /// DIR/freezer-guard.json, and makes those that do not exist. The option does not move the tree:
    /// only options of CRIU do.
    #[arg(long = "cgroup", value_name = "PATH", add = ArgValueCompleter::new(complete::cgroups))]
    cgroups: Vec<PathBuf>,
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    driver: Driver,
}

/// The object that `--json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Restored {
    /// Whether CRIU has restored the tree.
    restored: bool,
    /// The exit code of CRIU, or 128+N if signal N ended it.
    exit_code: u8,
    /// The roots of the restored trees.
    roots: Vec<Task>,
    /// The restored threads outside of the guarded cgroups. No guard protected them.
    strays: Vec<Task>,
    /// The guard at its end, or null if a process has ended it before.
    guard: Option<Status>,
}

impl Args {
    pub(super) fn is_verbose(&self) -> bool {
        self.driver.options.is_verbose()
    }

    /// Where the tree goes.
    fn places(&self) -> Result<Vec<PathBuf>> {
        let known = Known::of_whole_images(&self.images_dir)?;
        match known {
            _ if !self.cgroups.is_empty() => Ok(self.cgroups.clone()),
            Some(known) => Ok(known.cgroups),
            None => Err(criu::Error::NoCgroup(self.images_dir.clone()).into()),
        }
    }
}

/// CRIU's log in the directory of images.
const LOG: &str = "restore.log";

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let options = &args.driver.options;
    let places = args.places()?;
    let criu = args.driver.find()?;
    // What a failed one has left is not the reason of this one.
    let log = Log::new(&args.images_dir, LOG).anew();
    let mut made = CreatedCgroups::default();
    for place in &places {
        made.make(place)?;
    }
    let targets = cgroup::open_all(&places)?;
    let others = cgroup::roots(&targets.iter().flatten().collect::<Vec<_>>())?;
    let command = args.command(&criu, &made);
    let done = guarded::run(GuardedCommand {
        options,
        targets,
        named: true,
        roots: Vec::new(),
        freeze: true,
        thaw: true,
        restores: true,
        commands: &[command],
        meeting: None,
        watch: None,
    })?;

    let (held, excused) = (done.held(), done.is_excused(options));
    let code = done.code();
    let restored = code == exit::SUCCESS;
    let (mut roots, mut strays) = (Vec::new(), Vec::new());
    if restored {
        made.keep();
        if !held {
            say(format_args!(
                "CRIU has restored the tree although another process disturbed it: check that it works"
            ));
        }
        let pids = done.guard.as_ref().map(|guard| &guard.holder_pids[..]);
        // It may end at once: that is no failure of the restore.
        (roots, strays) = look(&places, &others, pids.unwrap_or_default()).unwrap_or_default();
    } else {
        driver::say_failure(&log, done.status);
    }
    tell(options, &roots, &strays);
    let has_strays = !strays.is_empty();
    if args.json {
        driver::print(&Restored {
            restored,
            exit_code: code.0,
            roots,
            strays,
            guard: done.guard,
        });
    }
    Ok(match held || excused {
        false => exit::VIOLATED.into(),
        true if has_strays => exit::BUSY.into(),
        true => code.into(),
    })
}

/// Tells which processes run, and which of them nobody guarded.
fn tell(options: &Options, roots: &[Task], strays: &[Task]) {
    for root in roots {
        options.step(format_args!(
            "pid {} ({}) runs",
            root.pid,
            escaped(&root.comm)
        ));
    }
    if let Some(stray) = strays.first() {
        say(format_args!(
            "CRIU restored pid {} ({}) into {}, which had no guard: name that cgroup with --cgroup next time",
            stray.pid,
            escaped(&stray.comm),
            stray.cgroup.display()
        ));
    }
}

impl Args {
    /// CRIU's command line.
    fn command(&self, criu: &Criu, made: &CreatedCgroups) -> Vec<OsString> {
        let mut command = vec![criu.path().into(), "restore".into(), "-D".into()];
        command.push(self.images_dir.clone().into());
        command.extend(["-o", LOG, "-v4", "-d"].map(Into::into));
        let manages = |option: &OsString| option.as_bytes().starts_with(b"--manage-cgroups");
        if !made.is_empty() && !self.driver.more.iter().any(manages) {
            // CRIU would take one that we have made for one that has its settings.
            command.push("--manage-cgroups=full".into());
        }
        command.extend(self.driver.more.iter().cloned());
        command
    }
}

/// Returns the roots of the restored trees, without the `others` that were there before, and the
/// holder's tasks outside of the guarded cgroups.
fn look(places: &[PathBuf], others: &[Task], holder: &[u32]) -> Result<(Vec<Task>, Vec<Task>)> {
    let mut pids: Vec<_> = holder.iter().map(|pid| pid.cast_signed()).collect();
    pids.retain(|pid| *pid != std::process::id().cast_signed());
    let cgroups: Vec<_> = cgroup::open_all(places)?.into_iter().flatten().collect();
    let cgroups: Vec<_> = cgroups.iter().collect();
    let mut roots = cgroup::roots(&cgroups)?;
    roots.retain(|root| !others.iter().any(|other| other.pid == root.pid));
    Ok((roots, cgroup::strays(&cgroups, &pids)?))
}
