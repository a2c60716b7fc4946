//! The guards in force.

use freezer_guard_abi::{GuardEntry, GuardId};

use super::{
    Error, Status,
    entries::{in_force, is_idle},
    lineage::Lineage,
    overlap::covering,
    reconcile::{detach_idle, reconcile},
    status::{Snapshot, status},
    store::GuardStore,
};
use crate::{cgroup::Cgroup, kernel::Locked};

/// Every guard in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list() -> Result<Vec<Status>, Error> {
    list_locked(&Locked::wait()?)
}

pub(super) fn list_locked(lock: &Locked) -> Result<Vec<Status>, Error> {
    let Some(maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    reconcile(&maps)?;
    detach_idle(lock, &maps)?;
    let mut seen = Snapshot::of_all(&maps)?;
    let mut guards = Vec::new();
    for (id, entry) in in_force(&maps)? {
        let seen = seen.remove(&id).unwrap_or_default();
        guards.push(seen.status(&maps, id, &entry)?);
    }
    guards.sort_by_key(|status| status.id);
    Ok(guards)
}

/// Returns the guard that holds the cgroup or one above it, or the tasks that CRIU has seized in it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn of_cgroup(cgroup: &Cgroup) -> Result<Option<Status>, Error> {
    let lock = Locked::wait()?;
    let Some(maps) = lock.open()? else {
        return Ok(None);
    };
    let line = Lineage::of(cgroup)?;
    let id = match covering(&maps, &line, None)? {
        Some(id) => Some(id),
        None => seized_in(&maps, cgroup)?,
    };
    match id {
        Some(id) => of_id_locked(&maps, id),
        None => Ok(None),
    }
}

/// A guard of seized tasks has no target. Its entry keeps the cgroup of the first one. (A cgroup below
/// that one has nothing to do with it.)
fn seized_in(store: &dyn GuardStore, cgroup: &Cgroup) -> Result<Option<GuardId>, Error> {
    let mut guards = in_force(store)?.into_iter();
    let seized = guards
        .find(|(_, entry)| entry.flags & GuardEntry::SEIZES != 0 && entry.target == cgroup.key());
    Ok(seized.map(|(id, _)| id))
}

/// The guard with this id, if it is in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn of_id(id: GuardId) -> Result<Option<Status>, Error> {
    match Locked::wait()?.open()? {
        Some(maps) => of_id_locked(&maps, id),
        None => Ok(None),
    }
}

pub(super) fn of_id_locked(store: &dyn GuardStore, id: GuardId) -> Result<Option<Status>, Error> {
    match store.guard(id)? {
        Some(entry) if !entry.is_candidate() => Ok(Some(status(store, id, &entry)?)),
        _ => Ok(None),
    }
}

/// How many guards are in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn count() -> Result<usize, Error> {
    match Locked::wait()?.open()? {
        Some(maps) => Ok(in_force(&maps)?.len()),
        None => Ok(0),
    }
}

/// Whether any guard is in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_any_in_force() -> Result<bool, Error> {
    match Locked::wait()?.open()? {
        Some(maps) => Ok(!is_idle(&maps)?),
        None => Ok(false),
    }
}
