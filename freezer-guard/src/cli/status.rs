//! `freezer-guard status`.

use std::{
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap_complete::engine::ArgValueCompleter;
use freezer_guard::{
    cgroup::Cgroup,
    guard::{Status, describe_level, refusals, violations},
    json::Versioned,
};
use serde::Serialize;

pub(super) mod watch;

use super::{
    client::{self, Daemon as _, answer},
    complete,
    error::{Error, Result},
    say::print,
    target,
};
use crate::daemon::{
    history,
    reply::{Guards, State},
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Show this cgroup: its directory, or a systemd unit; by default all guards
    #[arg(add = ArgValueCompleter::new(complete::cgroups_and_units))]
    path: Option<PathBuf>,
    /// Show the guards that have ended: the service keeps the last 64
    #[arg(long, conflicts_with = "path")]
    last: bool,
    /// Ask the service, and fail if it does not answer
    ///
    /// Without this option `status` asks the kernel, or reads the file of the last guards, if no service
    /// runs. It is meant for probes.
    #[arg(long, conflicts_with_all = ["path", "watch"])]
    service: bool,
    /// Show a live table of the guards in force and of the last ones that ended, until Ctrl-C or q
    ///
    /// It refreshes the table every SECONDS. Without a terminal it prints the table again when it has
    /// changed.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = watch::seconds,
        conflicts_with_all = ["path", "last"]
    )]
    watch: Option<Duration>,
    /// Print one JSON object; for a unit with several cgroups, one a line; with --watch, one at each refresh
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    if let Some(interval) = args.watch {
        return watch::main(interval, args.json);
    }
    let text = match &args.path {
        None => {
            let guards = client::block_on(async {
                match (args.service, args.last) {
                    (false, false) => client::list().await,
                    (false, true) => last().await,
                    (true, is_last) => list_of_service(is_last).await,
                }
            })?;
            match (args.json, guards.is_empty(), args.last) {
                (true, ..) => one_line(Guards { guards })?,
                (false, true, false) => "no cgroup is guarded\n".to_owned(),
                (false, true, true) => "no guard that has ended is remembered\n".to_owned(),
                (false, false, _) => guards.iter().map(describe).collect(),
            }
        }
        Some(path) => {
            let mut text = String::new();
            for cgroup in target::resolve(path)? {
                let found = client::block_on(state(cgroup.path()))?;
                text += &match (&found.guard, args.json) {
                    (_, true) => one_line(found)?,
                    (Some(guard), false) => describe(guard),
                    (None, false) => {
                        format!("{}: {}, not guarded\n", found.path.display(), found.state)
                    }
                };
            }
            text
        }
    };
    match args.json {
        true => std::io::stdout().write_all(text.as_bytes())?,
        false => print(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the object and its version as one line of JSON.
fn one_line(object: impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(&Versioned::new(object))? + "\n")
}

/// The last guards that have ended, the oldest first, as far as the service has kept them.
pub(super) async fn last() -> Result<Vec<Status>> {
    let failed = || Error::io(format!("read {}", history::LAST));
    client::ask(
        async |daemon| Ok(answer(daemon.list_ended()).await?.guards),
        || match std::fs::read(history::LAST) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed()(error.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed()(error)),
        },
    )
    .await
}

/// What the service itself says of the guards in force, or of those that have ended.
async fn list_of_service(is_last: bool) -> Result<Vec<Status>> {
    let answer = client::ask_daemon(async |daemon| match is_last {
        true => answer(daemon.list_ended()).await,
        false => answer(daemon.list()).await,
    });
    Ok(answer.await?.guards)
}

async fn state(path: &Path) -> Result<State> {
    let cgroup = Cgroup::open(path)?;
    client::ask(
        async |daemon| answer(daemon.status(&cgroup.address(), None)).await,
        || Ok(State::of(path, None)?),
    )
    .await
}

/// A guard in a few lines.
fn describe(guard: &Status) -> String {
    let mut text = String::new();
    for path in &guard.cgroups {
        text += &format!("{}: {}\n", path.display(), guard.state);
    }
    let pids: Vec<_> = guard.holder_pids.iter().map(u32::to_string).collect();
    let by = match pids.as_slice() {
        // It has ended.
        [] => String::new(),
        pids => format!(" by pid {}", pids.join(", ")),
    };
    text += &format!(
        "  guard {}, held for {:.1} s{by} ({})\n",
        guard.id,
        guard.held_seconds,
        describe_level(guard)
    );
    text += &format!("  {}\n", refusals(guard));
    for line in violations(guard) {
        text += &format!("  VIOLATED: {line}\n");
    }
    text
}
