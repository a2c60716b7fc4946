//! `freezer-guard status`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Result;
use freezer_guard::guard::{self, Status};
use serde_json::json;

use super::target;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A cgroup's directory or a systemd unit; without it, every guard
    path: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let text = match &args.path {
        None => {
            let guards = guard::list()?;
            if args.json {
                format!("{}\n", json!({ "guards": guards }))
            } else if guards.is_empty() {
                "no cgroup is guarded\n".to_owned()
            } else {
                guards.iter().map(describe).collect()
            }
        }
        Some(path) => {
            let mut text = String::new();
            for cgroup in target::resolve(path)? {
                let guard = guard::of_cgroup(&cgroup)?;
                let state = match &guard {
                    Some(guard) => guard.state.to_owned(),
                    None => cgroup.freezer_state()?.to_string(),
                };
                let path = cgroup.path();
                text += &match (&guard, args.json) {
                    (guard, true) => {
                        format!(
                            "{}\n",
                            json!({ "path": path, "state": state, "guard": guard })
                        )
                    }
                    (Some(guard), false) => describe(guard),
                    (None, false) => format!("{}: {state}, not guarded\n", path.display()),
                };
            }
            text
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A guard in a few lines.
fn describe(guard: &Status) -> String {
    let mut text = String::new();
    for path in &guard.cgroups {
        text += &format!("{}: {}\n", path.display(), guard.state);
    }
    let pids: Vec<_> = guard.holder_pids.iter().map(u32::to_string).collect();
    text += &format!(
        "  held for {:.1} s by pid {}\n",
        guard.held_seconds,
        pids.join(", ")
    );
    text + &format!("  {}\n", refusals(guard))
}

/// How many intruders a summary names.
const NAMED: usize = 5;

/// `refused 3 writes: 2 by sh (pid 12), 1 by tee (pid 13)`.
pub(super) fn refusals(guard: &Status) -> String {
    let count: u64 = guard.denials.values().sum();
    if count == 0 {
        return "refused no writes".to_owned();
    }
    let mut parts: Vec<_> = guard
        .intruders
        .iter()
        .take(NAMED)
        .map(|intruder| {
            format!(
                "{} by {} (pid {}, {})",
                intruder.count, intruder.comm, intruder.pid, intruder.protection
            )
        })
        .collect();
    let named: u64 = guard
        .intruders
        .iter()
        .take(NAMED)
        .map(|intruder| intruder.count)
        .sum();
    if count > named {
        parts.push(format!("{} by others", count - named));
    }
    let writes = if count == 1 { "write" } else { "writes" };
    format!("refused {count} {writes}: {}", parts.join(", "))
}
