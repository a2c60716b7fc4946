//! `freezer-guard end`: an administrator's way out.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use freezer_guard::{
    cgroup::Cgroup,
    guard::{self, Status},
};
use nix::{
    syslog::{Facility, LogFlags, Severity, openlog, syslog},
    unistd::getuid,
};

use super::{
    client::{self, Daemon as _, answer},
    exit, say, target,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The guarded cgroup's directory, or a systemd unit
    path: PathBuf,
    /// Yes, while its holder lives: its checkpoint will not be called good
    #[arg(long)]
    force: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    if !args.force {
        say(format_args!(
            "the guard of {} ends by itself with its holder; to cut it off, add --force",
            args.path.display()
        ));
        return Ok(exit::USAGE.into());
    }
    let mut found = false;
    for cgroup in target::resolve(&args.path)? {
        // A unit has one cgroup in each hierarchy; one guard covers both.
        let Some(ended) = client::block_on(end(&cgroup))? else {
            continue;
        };
        found = true;
        let line = format!(
            "guard of {} ended by force, by uid {}; held for {:.1} s, {}",
            cgroup.path().display(),
            getuid(),
            ended.held_seconds,
            guard::refusals(&ended)
        );
        say(format_args!("{line}"));
        log(&line);
    }
    if !found {
        return Err(guard::Error::NotGuarded(args.path.clone()).into());
    }
    Ok(ExitCode::SUCCESS)
}

/// `None`: it is not guarded.
async fn end(cgroup: &Cgroup) -> Result<Option<Status>> {
    let path = cgroup.path().to_str().context("this path is no text")?;
    client::ask(
        async |daemon| match answer(daemon.end(path, None, true)).await {
            Ok(ended) => Ok(Some(ended.guard)),
            Err(error) => match error.downcast_ref() {
                Some(client::Error::NotGuarded { .. }) => Ok(None),
                _ => Err(error),
            },
        },
        || match guard::end_by_force(cgroup) {
            Ok(ended) => Ok(Some(ended)),
            Err(guard::Error::NotGuarded(_)) => Ok(None),
            Err(error) => Err(error.into()),
        },
    )
    .await
}

/// To the system's log; without one it stays on standard error.
fn log(line: &str) {
    if openlog(
        Some(c"freezer-guard"),
        LogFlags::LOG_PID,
        Facility::LOG_DAEMON,
    )
    .is_ok()
    {
        // The system's log is the second place; the first has it.
        let _ = syslog(Severity::LOG_WARNING, line);
    }
}
