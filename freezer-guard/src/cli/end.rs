//! `freezer-guard end`: an administrator's way out.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use freezer_guard::guard;
use nix::{
    syslog::{Facility, LogFlags, Severity, openlog, syslog},
    unistd::getuid,
};

use super::{exit, say, status, target};

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
    for cgroup in target::resolve(&args.path)? {
        if guard::of_cgroup(&cgroup)?.is_none() && !args.path.is_dir() {
            // A unit has one cgroup in each hierarchy; one guard covers both.
            continue;
        }
        let ended = guard::end_by_force(&cgroup)?;
        let line = format!(
            "guard of {} ended by force, by uid {}; held for {:.1} s, {}",
            cgroup.path().display(),
            getuid(),
            ended.held_seconds,
            status::refusals(&ended)
        );
        say(format_args!("{line}"));
        log(&line);
    }
    Ok(ExitCode::SUCCESS)
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
