//! The marks of a guard in the maps: on its targets, and on what is above them.

use freezer_guard_abi::{AncestorKey, CgroupKey, GuardEntry, GuardId};

use super::{
    Error, Status,
    entries::{live, targets as targets_of},
    lineage::Lineage,
    reconcile::{forget, reconcile},
    status::Snapshot,
    store::GuardStore,
};

/// Where a guard is marked.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) targets: Vec<CgroupKey>,
    /// `None`: it is not known.
    pub(super) ancestors: Option<Vec<CgroupKey>>,
    /// Whether the calling thread belongs to the holder.
    pub(super) is_own: bool,
}

impl Marks {
    /// Of a guard that this process has begun. `around`: more cgroups that are marked as lying above it.
    pub(super) fn own(lineages: &[Lineage], around: impl IntoIterator<Item = CgroupKey>) -> Self {
        let above = lineages.iter().flat_map(|target| target.above.clone());
        Self {
            targets: lineages.iter().map(|target| target.key).collect(),
            ancestors: Some(above.chain(around).collect()),
            is_own: true,
        }
    }

    /// Of a guard that somebody else has begun.
    pub(super) fn of(store: &dyn GuardStore, id: GuardId) -> Result<Self, Error> {
        let targets = targets_of(store, id)?;
        let lineages: Option<Vec<_>> = targets.iter().copied().map(Lineage::of_key).collect();
        let above = |lineages: Vec<Lineage>| {
            let above = lineages.into_iter().flat_map(|target| target.above);
            above.collect()
        };
        Ok(Self {
            targets,
            ancestors: lineages.map(above),
            is_own: false,
        })
    }
}

/// Removes the marks, then the entry: in between, nothing is denied any more
/// and the counters stand still.
/// `restored`: its targets are as they were found.
pub(super) fn release(
    store: &dyn GuardStore,
    id: GuardId,
    marks: Marks,
    restored: bool,
) -> Result<Option<Status>, Error> {
    let Some(entry) = store.guard(id)? else {
        reconcile(store)?;
        return Ok(None);
    };
    // The service thaws the cgroups that have a mark.
    let is_frozen = !restored && entry.flags & GuardEntry::FROZEN_BY_US != 0;
    let waits_for_thaw = is_frozen && (entry.is_automatic() || store.daemon_runs());
    for key in &marks.targets {
        if !waits_for_thaw {
            store.unmark(*key, id)?;
        }
    }
    for cgroup in marks.ancestors.iter().flatten() {
        store.ancestors().remove(&AncestorKey::new(*cgroup, id))?;
    }
    let entry = store.guard(id)?.unwrap_or(entry);
    let seen = match marks.is_own && entry.members == 1 {
        true => Snapshot::of_own(store, id, &entry, marks.targets)?,
        false => Snapshot::of_one(store, id, &entry, marks.targets)?,
    };
    let status = seen.status(store, id, &entry)?;
    // A checkpointer may have written another freezer just now.
    // Where it lies in the other hierarchy is known to its own process only.
    let are_left =
        marks.ancestors.is_none() || entry.is_automatic() || !marks.is_own || waits_for_thaw;
    store.end(id, restored, are_left)?;
    if !entry.is_automatic() && !store.daemon_runs() {
        // Nobody asks what became of it.
        store.ended().remove(&id)?;
        forget(store, [(id, entry)])?;
    }
    if entry.members > 1 || !marks.is_own {
        // The element of the map is used again at once. A thread of the holder
        // that starts or ends just now must not count in the next guard.
        store.wait_for_programs()?;
    }
    reconcile(store)?;
    Ok(Some(status))
}

/// Makes the cgroup a target of the guard.
pub(super) fn mark_target(
    store: &dyn GuardStore,
    target: &Lineage,
    id: GuardId,
) -> Result<(), Error> {
    if let Some(marked) = store.targets().get(&target.key)?
        && live(store, Some(marked))?.is_none()
    {
        // A guard has just ended, and its mark was not looked for yet.
        store.unmark(target.key, marked)?;
    }
    match store.targets().add(target.key, id)? {
        true => Ok(()),
        // A checkpointer was faster that nobody had guarded.
        false => Err(Error::Guarded {
            path: store.name(target.key),
            of: store.name(target.key),
            pids: Vec::new(),
        }),
    }
}

/// Marks what is above a target of the guard.
pub(super) fn mark_ancestors(
    store: &dyn GuardStore,
    above: impl IntoIterator<Item = CgroupKey>,
    id: GuardId,
) -> Result<(), Error> {
    for cgroup in above {
        for guard in [id, AncestorKey::ANY] {
            // What a guard that has ended left there is overwritten.
            store.ancestors().put(AncestorKey::new(cgroup, guard), id)?;
        }
    }
    Ok(())
}
