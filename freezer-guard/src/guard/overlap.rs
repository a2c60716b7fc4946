//! Which guards are in the way of which: no two cover the same cgroup.

use freezer_guard_abi::{AncestorKey, CgroupKey, GuardId};

use super::{
    Error,
    entries::{holder_pids, live, targets as targets_of},
    lineage::Lineage,
    path,
    store::GuardStore,
};

/// The guard, other than `own`, that holds the cgroup or one above it.
pub(super) fn covering(
    store: &dyn GuardStore,
    cgroup: &Lineage,
    own: Option<GuardId>,
) -> Result<Option<GuardId>, Error> {
    for key in cgroup.line() {
        let id = live(store, store.targets().get(&key)?)?;
        if id.is_some() && id != own {
            return Ok(id);
        }
    }
    Ok(None)
}

/// Refuses targets of which one is another, or lies below it.
pub(super) fn refuse_overlap(targets: &[Lineage]) -> Result<(), Error> {
    for (number, one) in targets.iter().enumerate() {
        for (other_number, other) in targets.iter().enumerate() {
            if number != other_number && other.is_or_is_above(one) {
                return Err(Error::Overlap(path(other.key), path(one.key)));
            }
        }
    }
    Ok(())
}

/// `own`: a guard that is not in the way.
pub(super) fn refuse_guarded(
    store: &dyn GuardStore,
    targets: &[Lineage],
    own: Option<GuardId>,
) -> Result<(), Error> {
    match in_the_way(store, targets, own)? {
        Some((target, id)) => Err(guarded(store, target.key, id)?),
        None => Ok(()),
    }
}

/// The error for a cgroup that this guard is in the way of.
pub(super) fn guarded(
    store: &dyn GuardStore,
    cgroup: CgroupKey,
    id: GuardId,
) -> Result<Error, Error> {
    let first = targets_of(store, id)?.into_iter().next();
    let of = first.map(|key| store.name(key)).unwrap_or_default();
    Ok(Error::Guarded {
        path: store.name(cgroup),
        of,
        pids: holder_pids(store, id)?,
    })
}

/// Another guard than `own` on one of the targets, above it or below it.
pub(super) fn in_the_way<'a>(
    store: &dyn GuardStore,
    targets: &'a [Lineage],
    own: Option<GuardId>,
) -> Result<Option<(&'a Lineage, GuardId)>, Error> {
    for target in targets {
        let found = match covering(store, target, own)? {
            None => below(store, target.key, own)?,
            found => found,
        };
        if let Some(id) = found {
            return Ok(Some((target, id)));
        }
    }
    Ok(None)
}

/// A guard below the cgroup that is in force.
fn below(
    store: &dyn GuardStore,
    cgroup: CgroupKey,
    own: Option<GuardId>,
) -> Result<Option<GuardId>, Error> {
    let any = AncestorKey::new(cgroup, AncestorKey::ANY);
    let Some(last) = store.ancestors().get(&any)? else {
        return Ok(None);
    };
    if let Some(id) = live(store, Some(last))?.filter(|id| Some(*id) != own) {
        return Ok(Some(id));
    }
    for (key, id) in store.ancestors().entries()? {
        if key.cgroup == cgroup && Some(id) != own && store.guard(id)?.is_some() {
            return Ok(Some(id));
        }
    }
    Ok(None)
}
