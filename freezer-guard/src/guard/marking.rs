//! How targets become a guard's: no two guards are in one line of cgroups.

use freezer_guard_abi::{CgroupKey, GuardEntry, GuardId, control::Answer};

use super::{
    Error,
    lineage::Lineage,
    marks::{Marks, mark_ancestors, mark_target, release},
    overlap::{in_the_way, refuse_guarded},
    reconcile::reconcile,
    restoring::restore_targets,
    store::GuardStore,
};
use crate::kernel;

/// Sees that no other guard is in the way of one with these targets. `owner`: the uid of its
/// owner, if that is a user.
pub(super) fn clear_the_way(
    store: &dyn GuardStore,
    targets: &[Lineage],
    owner: Option<u32>,
) -> Result<(), Error> {
    if owner.is_none() {
        displace_users(store, targets)?;
    }
    refuse_guarded(store, targets, None)?;
    // A guard may have ended since: its marks would be in our way.
    reconcile(store)?;
    Ok(())
}

/// Begins the guard, with the calling thread as its holder, and marks its targets. `wait_quiescent`
/// returns when what the kernel side was at has come to its end. When this fails nothing of
/// the guard is left. `roots`: those of all hierarchies that its tasks are in, if there are several.
pub(super) fn claim(
    store: &dyn GuardStore,
    id: GuardId,
    entry: GuardEntry,
    targets: &[Lineage],
    roots: &[CgroupKey],
    wait_quiescent: impl FnOnce(),
) -> Result<(), Error> {
    // Enrolled before it is marked: from here on the guard ends with its holder
    // at the latest.
    match store.begin(id, entry)? {
        Answer::Done => {}
        Answer::OtherGuard => return Err(Error::Nested),
        _ => return Err(kernel::Error::Full("GUARDS").into()),
    }
    let marked = mark(store, id, targets, roots, wait_quiescent);
    if marked.is_err() {
        let marks = Marks::own(targets, roots.iter().copied());
        release(store, id, marks, true)?;
    }
    marked
}

/// Marks the targets of the guard.
fn mark(
    store: &dyn GuardStore,
    id: GuardId,
    targets: &[Lineage],
    roots: &[CgroupKey],
    wait_quiescent: impl FnOnce(),
) -> Result<(), Error> {
    for target in targets {
        mark_target(store, target, id)?;
        mark_ancestors(store, target.above.iter().copied(), id)?;
    }
    mark_ancestors(store, roots.iter().copied(), id)?;
    // The kernel side marks what a checkpointer writes, and waits for no lock of
    // ours: it may be in the way by now.
    wait_quiescent();
    let guards = store.guards().entries()?;
    if guards.iter().any(|(_, entry)| entry.is_automatic()) {
        // It marks a cgroup that a checkpointer reads, or seizes tasks of, under no mutex.
        store.wait_for_programs()?;
    }
    refuse_guarded(store, targets, Some(id))?;
    for target in targets {
        store.tell_marked(id, target.key)?;
    }
    Ok(())
}

/// Ends the guards of users that are in the way of one of the host's root: a user cannot keep
/// root from a checkpoint.
fn displace_users(store: &dyn GuardStore, targets: &[Lineage]) -> Result<(), Error> {
    displace(store, &|| {
        Ok(in_the_way(store, targets, None)?.map(|(_, id)| id))
    })
}

/// Ends one after the other those that are found, if they are guards of users.
pub(super) fn displace(
    store: &dyn GuardStore,
    find: &dyn Fn() -> Result<Option<GuardId>, Error>,
) -> Result<(), Error> {
    while let Some(id) = find()? {
        let is_by_user = |entry: GuardEntry| entry.flags & GuardEntry::BY_USER != 0;
        if !store.guard(id)?.is_some_and(is_by_user) {
            break;
        }
        // One that cannot be thawed is told when it is to be frozen.
        let restored = restore_targets(store, id);
        let marks = Marks::of(store, id)?;
        release(store, id, marks, restored.is_ok())?;
    }
    Ok(())
}
