//! `freezer-guard verify`: are all tasks of a checkpoint where they should be?

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap_complete::engine::ArgValueCompleter;
use freezer_guard::{
    cgroup::{self, Report, Task},
    guard::{self, Target},
    json::Versioned,
    words::{self, escaped},
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    complete,
    error::Result,
    exit,
    say::{print, say},
    target,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The root of the process tree
    #[arg(long, value_name = "PID")]
    pid: i32,
    /// Check that the tree is in this cgroup: its directory, or a systemd unit
    ///
    /// Repeat the option to name several. The default is the cgroups of PID.
    #[arg(long = "cgroup", value_name = "PATH", add = ArgValueCompleter::new(complete::cgroups_and_units))]
    cgroups: Vec<PathBuf>,
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

/// The object that `--json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Verified {
    /// The pid of the root of the tree.
    pid: i32,
    /// The paths of the cgroups.
    #[serde(serialize_with = "words::texts")]
    cgroups: Vec<PathBuf>,
    /// Whether the whole tree is in the cgroups, and no process traces it.
    good: bool,
    /// The threads that the check has found.
    report: Report,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let targets = target::all(&args.cgroups, Some(args.pid))?;
    let target: Target = targets.into_iter().flatten().collect();
    let paths = target.iter().map(|cgroup| cgroup.path().to_owned());
    let paths: Vec<_> = paths.collect();
    if args.json {
        let report = cgroup::examine(&[target], &[args.pid])?;
        let good = report.strays.is_empty() && report.traced.is_empty();
        let object = Versioned::new(Verified {
            pid: args.pid,
            cgroups: paths,
            good,
            report,
        });
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&object)?)?;
        return Ok(match good {
            true => ExitCode::SUCCESS,
            false => exit::BUSY.into(),
        });
    }
    let report = guard::verify(&[target], &[args.pid])?;
    warn(&[args.pid], &report);
    let count = report.tasks - report.foreign.len();
    print(&format!(
        "pid {} and all its descendants ({count} threads) are in {}\n",
        args.pid,
        words::join(&paths, ", ")
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Warns of tasks and probes that may spoil a checkpoint, but do not stop freezer-guard.
pub(super) fn warn(roots: &[i32], report: &Report) {
    if !roots.is_empty() && !report.foreign.is_empty() {
        say(format_args!(
            "warning: these tasks are in the cgroup and not in the tree of pid {}: CRIU freezes them and does not dump them: {}",
            roots
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            name(&report.foreign)
        ));
    }
    if !report.stopped.is_empty() {
        say(format_args!(
            "warning: these tasks are stopped, and CRIU waits for them for ever on cgroup v1; continue them (kill -CONT): {}",
            name(&report.stopped)
        ));
    }
    if let Some(probe) = report.probes.first() {
        say(format_args!(
            "warning: this host has uprobes, such as {}: a process whose image holds a breakpoint dies of \
             SIGTRAP after the restore; remove the uprobes before the checkpoint",
            escaped(probe)
        ));
    }
}

/// The first of them.
fn name(tasks: &[Task]) -> String {
    const NAMED: usize = 5;
    let first = tasks.iter().take(NAMED);
    let mut named: Vec<_> = first
        .map(|task| format!("pid {} ({})", task.tid, escaped(&task.comm)))
        .collect();
    if tasks.len() > NAMED {
        named.push(format!("{} more", tasks.len() - NAMED));
    }
    named.join(", ")
}
