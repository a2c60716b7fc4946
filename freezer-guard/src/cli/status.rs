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
    text += &format!("  {}\n", refusals(guard));
    for line in violations(guard) {
        text += &format!("  VIOLATED: {line}\n");
    }
    text
}

/// How many intruders or violations a summary names.
const NAMED: usize = 5;

/// `refused 3 attempts: 2 by sh (pid 12, freeze), 1 by tee (pid 13, kill)`.
pub(super) fn refusals(guard: &Status) -> String {
    let count: u64 = guard.denials.values().sum();
    if count == 0 {
        return "refused nothing".to_owned();
    }
    let mut by_process: Vec<(u32, &str, &str, u64)> = Vec::new();
    for deed in &guard.intruders {
        let same = |(pid, _, protection, _): &&mut (u32, &str, &str, u64)| {
            *pid == deed.pid && *protection == deed.protection
        };
        match by_process.iter_mut().find(same) {
            Some((.., count)) => *count += deed.count,
            None => by_process.push((deed.pid, &deed.comm, deed.protection, deed.count)),
        }
    }
    by_process.truncate(NAMED);
    let named: u64 = by_process.iter().map(|(.., count)| count).sum();
    let mut parts: Vec<_> = by_process
        .into_iter()
        .map(|(pid, comm, protection, count)| {
            format!("{count} by {comm} (pid {pid}, {protection})")
        })
        .collect();
    if count > named {
        parts.push(format!("{} by others", count - named));
    }
    let attempts = if count == 1 { "attempt" } else { "attempts" };
    format!("refused {count} {attempts}: {}", parts.join(", "))
}

/// What got through, a line each; none when nothing did.
pub(super) fn violations(guard: &Status) -> Vec<String> {
    let count = guard.violation_count();
    if count == 0 {
        return Vec::new();
    }
    let mut named = 0;
    let mut lines = Vec::new();
    for deed in guard.violation_deeds().take(NAMED) {
        named += deed.count;
        lines.push(format!("{} {deed}", deed.first));
    }
    if count > named {
        let kinds: Vec<_> = guard
            .violations
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        lines.push(format!(
            "and {} more; in all: {}",
            count - named,
            kinds.join(", ")
        ));
    }
    lines
}
