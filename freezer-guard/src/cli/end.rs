//! `freezer-guard end`: an administrator's way out.

use std::{path::PathBuf, process::ExitCode};

use clap_complete::engine::ArgValueCompleter;
use freezer_guard::{
    cgroup::Cgroup,
    guard::{self, Status},
    kernel::may_use_bpf,
    words::{escaped, join},
};
use freezer_guard_abi::GuardId;
use nix::{
    syslog::{Facility, LogFlags, Severity, openlog, syslog},
    unistd::getuid,
};

use super::{
    client::{self, Daemon as _, answer},
    complete,
    error::{Error, Result},
    exit,
    say::say,
    target,
};
use crate::daemon::reply;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// End the guard although its holder is still running
    ///
    /// The checkpoint of that holder is then violated: its `run` or `checkpoint` exits with 73.
    /// Without this option `end` does nothing and exits with 64, because a guard ends with its
    /// holder anyway.
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// End the guard of this cgroup: its directory, or a systemd unit
    #[arg(add = ArgValueCompleter::new(complete::cgroups_and_units))]
    path: Option<PathBuf>,
    /// End the guard with this id, which `status` shows; its cgroup may be gone
    #[arg(long, value_name = "ID", add = ArgValueCompleter::new(complete::guards))]
    guard: Option<GuardId>,
    /// End all guards, also those of another version of freezer-guard
    #[arg(long)]
    all: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    if !args.force {
        say(format_args!(
            "a guard ends by itself with its holder; add --force to end it earlier, and its checkpoint is then reported as violated"
        ));
        return Ok(exit::USAGE.into());
    }
    if args.which.all {
        return end_all();
    }
    let ended = match (&args.which.path, args.which.guard) {
        (Some(path), _) => {
            let mut ended = Vec::new();
            for cgroup in target::resolve(path)? {
                // A unit has one cgroup in each hierarchy; one guard covers both.
                ended.extend(client::block_on(end_of(&cgroup))?);
            }
            ended
        }
        (None, id) => {
            let id = id.unwrap_or_default();
            client::block_on(end(None, Some(id), || Ok(guard::end_by_force(id)?)))?
                .into_iter()
                .collect()
        }
    };
    if ended.is_empty() {
        let id = args.which.guard.unwrap_or_default();
        let name = args.which.path.clone();
        let name = name.unwrap_or_else(|| format!("guard {id}").into());
        return Err(guard::Error::NotGuarded(name).into());
    }
    ended.iter().for_each(tell);
    Ok(ExitCode::SUCCESS)
}

fn end_all() -> Result<ExitCode> {
    let (guards, of_another_version) = match may_use_bpf() {
        Ok(()) => {
            let ended = guard::end_all_by_force()?;
            (ended.guards, ended.of_another_version)
        }
        Err(_) => (client::block_on(end_all_by_service())?, false),
    };
    guards.iter().for_each(tell);
    if of_another_version {
        let line = format!(
            "the guards of another version ended by force, by uid {}",
            getuid()
        );
        say(format_args!("{line}"));
        log(&line);
    } else if guards.is_empty() {
        say(format_args!("no cgroup is guarded"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn end_all_by_service() -> Result<Vec<Status>> {
    let mut ended = Vec::new();
    for guard in client::list().await? {
        ended.extend(end(None, Some(guard.id), || Ok(guard::end_by_force(guard.id)?)).await?);
    }
    Ok(ended)
}

/// The guard of a cgroup, by whatever bytes that is called.
async fn end_of(cgroup: &Cgroup) -> Result<Option<Status>> {
    let by_kernel = || match guard::of_cgroup(cgroup)? {
        Some(guard) => Ok(guard::end_by_force(guard.id)?),
        None => Ok(None),
    };
    end(Some(&cgroup.address()), None, by_kernel).await
}

/// `None`: it is not in force.
async fn end(
    cgroup: Option<&str>,
    guard: Option<GuardId>,
    by_kernel: impl FnOnce() -> Result<Option<Status>>,
) -> Result<Option<Status>> {
    client::ask(
        async |daemon| match answer(daemon.end(cgroup, guard, true)).await {
            Ok(ended) => Ok(Some(ended.guard)),
            Err(Error::Service(reply::Error::NotGuarded { .. })) => Ok(None),
            Err(error) => Err(error),
        },
        by_kernel,
    )
    .await
}

fn tell(ended: &Status) {
    let line = format!(
        "guard of {} ended by force, by uid {}; held for {:.1} s, {}",
        escaped(&join(&ended.cgroups, ", ")),
        getuid(),
        ended.held_seconds,
        guard::refusals(ended)
    );
    say(format_args!("{line}"));
    log(&line);
    say(format_args!(
        "its cgroups keep their state: thaw them if they are FROZEN; its holder runs on, until it ends or you kill it"
    ));
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
