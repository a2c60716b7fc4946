//! What may be done to the guards of others: follow them, end them.

use std::path::Path;

use freezer_guard_abi::{CgroupKey, GuardId};

use super::{
    Error, Status,
    entries::{in_force, is_idle, targets},
    marks::{Marks, release},
    proof::prove_end,
    query::{list_locked, of_id_locked},
    reconcile::{detach_idle, reconcile},
    restoring::{open, restore_targets},
};
use crate::kernel::{self, Locked, Maps, Reader, daemon_runs};

/// Follows the events of all guards, those to come included; also returns the
/// guards in force when that began.
///
/// # Errors
/// When the kernel cannot be asked, or too many follow the events already.
pub fn follow() -> Result<(Reader, Vec<Status>), Error> {
    let lock = Locked::wait()?;
    let guards = list_locked(&lock)?;
    Ok((Reader::open(&lock)?, guards))
}

/// Ends this guard, although its holder lives. Its cgroups stay as they are. Returns `None`
/// if it is not in force.
///
/// # Errors
/// When the kernel cannot be asked, or another version has loaded the programs.
pub fn end_by_force(id: GuardId) -> Result<Option<Status>, Error> {
    let lock = Locked::wait()?;
    match lock.open()? {
        Some(maps) => end(&lock, &maps, id, Ok(())),
        None => Ok(None),
    }
}

/// Proves that the kernel calls the programs of a guard, whose holder this process belongs to, and
/// returns its status after that; `None`: it is not in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn prove(id: GuardId) -> Result<Option<Status>, Error> {
    let lock = Locked::wait()?;
    let Some(maps) = lock.open()? else {
        return Ok(None);
    };
    let targets: Vec<_> = targets(&maps, id)?.into_iter().filter_map(open).collect();
    prove_end(&lock, &maps, id, &targets.iter().collect::<Vec<_>>())?;
    of_id_locked(&maps, id)
}

/// What [`end_all_by_force`] has ended.
#[derive(Debug)]
pub struct EndedAll {
    /// The guards.
    pub guards: Vec<Status>,
    /// Whether guards of another version were among them: only that version can read their
    /// counters.
    pub of_another_version: bool,
}

/// Ends every guard, also those that another version of this program holds.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn end_all_by_force() -> Result<EndedAll, Error> {
    let lock = Locked::wait()?;
    let mut ended = EndedAll {
        guards: Vec::new(),
        of_another_version: false,
    };
    let ids = match lock.open() {
        Ok(Some(maps)) => in_force(&maps)?,
        Ok(None) => return Ok(ended),
        Err(kernel::Error::OtherVersion) => {
            lock.unload_and_wait()?;
            ended.of_another_version = true;
            return Ok(ended);
        }
        Err(error) => return Err(error.into()),
    };
    for (id, _) in ids {
        if let Some(maps) = lock.open()? {
            ended.guards.extend(end(&lock, &maps, id, Ok(()))?);
        }
    }
    Ok(ended)
}

/// Ends this guard in its holder's name: its targets are restored to the state they were
/// found in. `name`: what the holder calls it by, which may have gone. Also returns the targets that this has
/// thawed.
///
/// # Errors
/// When there is none; when a target cannot be restored, and there was no
/// violation to be told first: the guard has ended even so.
pub fn end_by_holder(id: GuardId, name: &Path) -> Result<(Status, Vec<CgroupKey>), Error> {
    let lock = Locked::wait()?;
    let not_guarded = || Error::NotGuarded(name.to_owned());
    let maps = lock.open()?.ok_or_else(not_guarded)?;
    let (thawed, restored) = match restore_targets(&maps, id) {
        Ok(restored) => restored,
        Err(error) => (Vec::new(), Err(error)),
    };
    let targets: Vec<_> = targets(&maps, id)?.into_iter().filter_map(open).collect();
    prove_end(&lock, &maps, id, &targets.iter().collect::<Vec<_>>())?;
    let status = end(&lock, &maps, id, restored)?.ok_or_else(not_guarded)?;
    Ok((status, thawed))
}

/// Removes the programs and the maps from the kernel, of whatever version of this program
/// they are. Whether there were any.
///
/// # Errors
/// When a guard is in force, or the daemon runs: it needs them.
pub fn unload() -> Result<bool, Error> {
    let lock = Locked::wait()?;
    if daemon_runs() {
        return Err(Error::DaemonRuns);
    }
    let is_loaded = lock.is_loaded()?;
    // What another version has loaded goes here already, if it holds no guard.
    if let Some(maps) = lock.open()? {
        reconcile(&maps)?;
        if !is_idle(&maps)? {
            return Err(Error::InForce(in_force(&maps)?.len()));
        }
    }
    lock.unload()?;
    Ok(is_loaded)
}

/// `restored`: whether its targets are as they were found, if they are to be.
fn end(
    lock: &Locked,
    maps: &Maps,
    id: GuardId,
    restored: Result<(), Error>,
) -> Result<Option<Status>, Error> {
    let marks = Marks::of(maps, id)?;
    let end = release(maps, id, marks, restored.is_ok())?;
    detach_idle(lock, maps)?;
    match (&end, restored) {
        (Some(status), Err(error)) if status.violation_count() == 0 => Err(error),
        _ => Ok(end),
    }
}
