//! What a guard did, in words.

use super::{Status, total};
use crate::words::escaped;

/// `enforce`, or `freeze: enforce, ptrace: detect` and so on when they differ; for the guard
/// of a user, with his uid.
pub fn describe_level(guard: &Status) -> String {
    match guard.owner_uid {
        None => describe_levels(guard),
        Some(uid) => format!("{}; owner: uid {uid}", describe_levels(guard)),
    }
}

fn describe_levels(guard: &Status) -> String {
    let in_force = || {
        let levels = guard.levels.iter();
        levels.filter(|(name, _)| !guard.allowed.contains(*name))
    };
    if in_force().all(|(_, level)| *level == guard.level) {
        return guard.level.to_owned();
    }
    let each: Vec<_> = in_force()
        .map(|(name, level)| format!("{name}: {level}"))
        .collect();
    each.join(", ")
}

/// How many intruders or violations a summary names.
const NAMED: usize = 5;

/// `refused 3 attempts: 2 by sh (pid 12, freeze), 1 by tee (pid 13, kill)`.
pub fn refusals(guard: &Status) -> String {
    let count = total(&guard.denials);
    if count == 0 {
        return "refused nothing".to_owned();
    }
    let mut by_process: Vec<(u32, &str, &str, u64)> = Vec::new();
    for incident in &guard.intruders {
        let same = |(pid, _, protection, _): &&mut (u32, &str, &str, u64)| {
            *pid == incident.pid && *protection == incident.protection
        };
        match by_process.iter_mut().find(same) {
            Some((.., count)) => *count = count.saturating_add(incident.count),
            None => by_process.push((
                incident.pid,
                &incident.comm,
                &incident.protection,
                incident.count,
            )),
        }
    }
    by_process.truncate(NAMED);
    let named = by_process.iter().map(|(.., count)| *count);
    let named = named.fold(0, u64::saturating_add);
    let mut parts: Vec<_> = by_process
        .into_iter()
        .map(|(pid, comm, protection, count)| {
            format!("{count} by {} (pid {pid}, {protection})", escaped(comm))
        })
        .collect();
    if count > named {
        parts.push(format!("{} by others", count - named));
    }
    let attempts = if count == 1 { "attempt" } else { "attempts" };
    format!("refused {count} {attempts}: {}", parts.join(", "))
}

/// What got through, a line each; none when nothing did.
pub fn violations(guard: &Status) -> Vec<String> {
    let count = total(&guard.violations);
    let mut named = 0_u64;
    let mut lines = Vec::new();
    for incident in guard.violation_incidents().take(NAMED) {
        named = named.saturating_add(incident.count);
        lines.push(format!("{} {incident}", incident.first));
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
    if guard.unproven {
        lines.push(
            "the kernel did not call the BPF programs all the time: function tracing was off (`sysctl \
             kernel.ftrace_enabled`), or another process detached a program; any disturbance may have \
             gone undetected meanwhile"
                .to_owned(),
        );
    }
    if guard.missed > 0 {
        lines.push(format!(
            "{} calls may have been missed, since this kernel preempts BPF programs: \
             another process may have traced a task or written its memory",
            guard.missed
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{Status, refusals, violations};

    /// Evidence of an image may hold any number.
    #[test]
    fn no_counts_are_too_large() {
        let mut guard: Status = serde_json::from_str(Status::OLD).expect("a guard");
        for counts in [&mut guard.denials, &mut guard.violations] {
            for kind in ["freeze", "kill"] {
                counts.insert(kind.to_owned(), u64::MAX);
            }
        }
        let most = format!("refused {} attempts", u64::MAX);
        assert!(refusals(&guard).starts_with(&most), "{}", refusals(&guard));
        assert!(!violations(&guard).is_empty());
    }
}
