//! A guard in force, as far as the service remembers it.

use std::{fs, path::PathBuf, time::Duration};

use freezer_guard::{
    guard::Status,
    words::{escaped, join},
};
use freezer_guard_abi::GuardId;
use tokio::time::Instant;

/// The service remembers this of a guard while it is held.
#[derive(Default)]
pub(super) struct Known {
    pub(super) has_begun: bool,
    /// As they were called when it began: they may be gone at its end.
    pub(super) cgroups: Vec<PathBuf>,
    /// Whether its holder was killed, since it took too long.
    pub(super) was_killed: bool,
    id: GuardId,
    is_automatic: bool,
    holder_pid: Option<u32>,
    since: Option<Instant>,
    was_warned: bool,
    has_told_way_out: bool,
}

impl Known {
    /// The guard has begun, or has one more target.
    pub(super) fn begin(&mut self, id: GuardId, status: &Status) {
        self.id = id;
        self.has_begun = true;
        self.cgroups.clone_from(&status.cgroups);
        self.is_automatic = status.automatic;
        self.holder_pid = status.holder_pids.first().copied();
        let held = Duration::from_secs_f64(status.held_seconds);
        self.since = Instant::now().checked_sub(held);
    }

    fn lasts(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether a dump takes longer than this.
    pub(super) fn is_over(&self, limit: Option<Duration>) -> bool {
        self.is_automatic && limit.is_some_and(|limit| self.lasts() > limit)
    }

    /// The warning that a dump takes longer than this, once.
    pub(super) fn warning(&mut self, limit: Option<Duration>) -> Option<String> {
        if self.was_warned || !self.is_over(limit) {
            return None;
        }
        self.was_warned = true;
        let pid = self.holder_pid?;
        Some(format!(
            "the dump of {} takes long: {} s until now; CRIU (pid {pid}) {}; kill it, or end the guard: \
             `freezer-guard end --guard {} --force`",
            escaped(&join(&self.cgroups, " ")),
            self.lasts().as_secs(),
            waits_in(pid),
            self.id
        ))
    }

    /// The remedy if the guard is in the way, once.
    pub(super) fn way_out(&mut self) -> Option<String> {
        if self.has_told_way_out {
            return None;
        }
        self.has_told_way_out = true;
        let pid = self.holder_pid?;
        Some(format!(
            ": pid {pid} holds the guard of {}; wait for it, kill it, or end the guard: \
             `freezer-guard end --guard {} --force`",
            escaped(&join(&self.cgroups, " ")),
            self.id
        ))
    }
}

/// The kernel function that a process waits in.
fn waits_in(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/wchan")).as_deref() {
        Ok("" | "0") => "does not wait".to_owned(),
        Ok(function) => format!("waits in {}", escaped(function)),
        Err(_) => "has ended, and a child of it goes on".to_owned(),
    }
}
