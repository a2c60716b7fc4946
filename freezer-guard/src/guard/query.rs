//! The guards in force.

use freezer_guard_abi::GuardId;

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

/// The guard that holds the cgroup or one above it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn of_cgroup(cgroup: &Cgroup) -> Result<Option<Status>, Error> {
    let lock = Locked::wait()?;
    let Some(maps) = lock.open()? else {
        return Ok(None);
    };
    let Some(id) = covering(&maps, &Lineage::of(cgroup)?, None)? else {
        return Ok(None);
    };
    of_id_locked(&maps, id)
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
