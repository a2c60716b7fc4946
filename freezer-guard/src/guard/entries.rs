//! Which guards are in force.

use freezer_guard_abi::{CgroupKey, GuardEntry, GuardId};

use super::{Error, store::GuardStore};

/// The guard that a mark names, if that is in force.
pub(super) fn live(
    store: &dyn GuardStore,
    mark: Option<GuardId>,
) -> Result<Option<GuardId>, Error> {
    match mark {
        Some(id) => Ok(store.guard(id)?.map(|_| id)),
        None => Ok(None),
    }
}

pub(super) fn is_in_force(entry: &GuardEntry) -> bool {
    !entry.is_candidate() && entry.is_in_force()
}

/// Whether no guard is in force.
pub(super) fn is_idle(store: &dyn GuardStore) -> Result<bool, Error> {
    // Of many guards, one of the first is in force.
    let any = store.guards().find(&|_, entry| is_in_force(entry))?;
    Ok(any.is_none())
}

/// Every guard in force.
pub(super) fn in_force(store: &dyn GuardStore) -> Result<Vec<(GuardId, GuardEntry)>, Error> {
    let mut guards = store.guards().entries()?;
    guards.retain(|(_, entry)| is_in_force(entry));
    Ok(guards)
}

/// The targets of a guard.
pub(super) fn targets(store: &dyn GuardStore, id: GuardId) -> Result<Vec<CgroupKey>, Error> {
    let all = store.targets().entries()?.into_iter();
    let mut keys: Vec<_> = all
        .filter(|(_, of)| *of == id)
        .map(|(key, _)| key)
        .collect();
    keys.sort();
    Ok(keys)
}

/// The processes of a guard's holder.
pub(super) fn holder_pids(store: &dyn GuardStore, id: GuardId) -> Result<Vec<u32>, Error> {
    let members = store.members(Some(id))?.into_iter();
    let mut pids: Vec<_> = members.map(|member| member.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}
