//! Whether an event is news: the log has each event once.

use freezer_guard_abi::{CgroupKey, GuardId, RawEvent};

use super::Daemon;

/// How many different incidents of one guard are logged one by one.
const LOGGED: usize = 32;

/// An actor, its incident and the object of it, as an event has them.
pub(super) type What = (u32, u32, u32, u32, u32, CgroupKey);

impl Daemon {
    /// Whether it is no news: the first time of each incident is logged, and at the end there
    /// are the counts.
    pub(super) fn is_logged(&self, event: &RawEvent) -> bool {
        let mut logged = self.logged.borrow_mut();
        let incidents = logged.entry(event.guard).or_default();
        let RawEvent {
            kind,
            pid,
            act,
            detail,
            victim,
            cgroup,
            ..
        } = *event;
        incidents.len() >= LOGGED || !incidents.insert((kind, pid, act, detail, victim, cgroup))
    }

    /// Whether this checkpoint without a guard was told of before.
    pub(super) fn is_unguarded_already(&self, id: GuardId) -> bool {
        const REMEMBERED: usize = 1024;
        let mut unguarded = self.unguarded.borrow_mut();
        while unguarded.len() > REMEMBERED {
            unguarded.pop_first();
        }
        !unguarded.insert(id)
    }
}
