//! What a guard does to its targets' freezers, undone: one rule for all who end a guard.

use freezer_guard_abi::{CgroupKey, GuardEntry, GuardId};

use super::{
    Error,
    entries::targets,
    freezer::{Freezer, wait_quiescent},
    store::GuardStore,
};
use crate::cgroup::{self, Cgroup};

/// How a target was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Thawed; it was frozen for the guard.
    Thawed,
    /// FROZEN.
    Frozen,
    /// Nothing was done to it.
    Untouched,
}

impl Found {
    /// As the entry remembers it, of all targets alike.
    fn remembered(entry: &GuardEntry) -> Self {
        match entry.flags {
            // An engine has paused it.
            flags if flags & GuardEntry::CLAIMED_FROZEN != 0 => Self::Untouched,
            flags if flags & GuardEntry::FROZEN_BY_US != 0 => Self::Thawed,
            flags if flags & GuardEntry::FOUND_FROZEN != 0 && entry.checkpointing_ns != 0 => {
                Self::Frozen
            }
            _ => Self::Untouched,
        }
    }
}

/// Brings each target into the state that it was found in, and returns those it has changed.
/// What was frozen for the guard is thawed; what was found FROZEN stays so, also after a
/// checkpointer that crashed. A cgroup that is gone had nothing to restore: the checkpointer
/// may have removed it together with its tasks. An empty one is not frozen again: a restore into
/// a frozen cgroup hangs. One that cannot be restored is no reason to
/// leave the others.
pub(super) fn restore<'a, F: Freezer + 'a>(
    targets: impl IntoIterator<Item = (&'a F, Found)>,
) -> (Vec<CgroupKey>, Result<(), Error>) {
    let (mut changed, mut result) = (Vec::new(), Ok(()));
    for (target, found) in targets {
        let restored = match (found, target.is_self_frozen()) {
            (Found::Untouched, _) => continue,
            (Found::Thawed, Ok(true)) => target.thaw().map(|()| changed.push(target.key())),
            (Found::Frozen, Ok(false)) => freeze_again(target).map(|froze| {
                changed.extend(froze.then(|| target.key()));
            }),
            (_, state) => state.map(drop),
        };
        match restored {
            Err(cgroup::Error::Io { source, .. }) if cgroup::is_gone(&source) => {}
            restored => result = result.and(restored),
        }
    }
    (changed, result.map_err(Error::from))
}

/// Freezes a cgroup that has tasks. Returns whether it has.
fn freeze_again(target: &impl Freezer) -> Result<bool, cgroup::Error> {
    let has_tasks = target.has_tasks()?;
    if has_tasks {
        target.freeze()?;
    }
    Ok(has_tasks)
}

/// The cgroup with this identity, if it is still there.
pub(super) fn open(key: CgroupKey) -> Option<Cgroup> {
    Cgroup::open(&cgroup::by_key(key)?).ok()
}

/// Restores the targets of a guard that another process has begun, as a member of its holder. Returns those
/// that it has thawed.
pub(super) fn restore_targets(
    store: &dyn GuardStore,
    id: GuardId,
) -> Result<(Vec<CgroupKey>, Result<(), Error>), Error> {
    let Some(entry) = store.guard(id)? else {
        return Ok((Vec::new(), Ok(())));
    };
    let targets: Vec<_> = targets(store, id)?.into_iter().filter_map(open).collect();
    let found = Found::remembered(&entry);
    // To be allowed to.
    store.join(id)?;
    let (mut thawed, restored) = restore(targets.iter().map(|target| (target, found)));
    if found != Found::Thawed {
        thawed.clear();
    }
    // The kernel side counts a write a moment after it, and this one has to count.
    targets.iter().for_each(wait_quiescent);
    store.leave(id)?;
    Ok((thawed, restored))
}

/// Thaws each of the cgroups: what a checkpointer wants that cannot do it by itself.
///
/// # Errors
/// When one of them cannot be thawed.
pub fn thaw<'a>(cgroups: impl IntoIterator<Item = &'a Cgroup>) -> Result<(), Error> {
    for cgroup in cgroups {
        cgroup.thaw()?;
    }
    Ok(())
}
