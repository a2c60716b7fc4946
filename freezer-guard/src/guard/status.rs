//! What guards are in force, for people and for JSON.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use freezer_guard_ebpf::{CgroupKey, Guard as Entry, GuardId, Protection};

use super::{
    Error,
    marks::{covering, entries, reconcile, unload_if_unused},
    now,
};
use crate::{
    cgroup::{self, Cgroup},
    kernel::{Locked, Maps},
};

/// What a guard did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Status {
    /// Its id.
    pub id: GuardId,
    /// CHECKPOINTING, or PREPARING while it is being begun.
    pub state: &'static str,
    /// The guarded cgroups; one that is gone is shown by its identity.
    pub cgroups: Vec<PathBuf>,
    /// The processes that may write.
    pub holder_pids: Vec<u32>,
    /// How long it has been held, seconds.
    pub held_seconds: f64,
    /// Refused writes by [`Protection`].
    pub denials: BTreeMap<&'static str, u64>,
    /// Who wrote, the most eager first. May be incomplete: `denials` is not.
    pub intruders: Vec<Intruder>,
    /// Refusals that were counted but did not fit among the events.
    pub lost_events: u64,
}

/// Somebody who ran into a guard.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Intruder {
    /// The process.
    pub pid: u32,
    /// Its name at the first write.
    pub comm: String,
    /// What it tried, a name of [`Protection`].
    pub protection: &'static str,
    /// How often.
    pub count: u64,
}

/// Every guard in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list() -> Result<Vec<Status>, Error> {
    let lock = Locked::wait()?;
    let Some(mut maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    reconcile(&mut maps)?;
    unload_if_unused(&lock, &maps)?;
    let mut guards = Vec::new();
    for (id, entry) in entries(&maps.guards)? {
        guards.push(status(&maps, id, &entry)?);
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
    let Some(id) = covering(&maps, cgroup)? else {
        return Ok(None);
    };
    match maps.guard(id)? {
        Some(entry) => Ok(Some(status(&maps, id, &entry)?)),
        None => Ok(None),
    }
}

pub(super) fn status(maps: &Maps, id: GuardId, entry: &Entry) -> Result<Status, Error> {
    let mut intruders: Vec<_> = entries(&maps.intruders)?
        .into_iter()
        .filter(|(key, _)| key.guard == id)
        .map(|(key, intruder)| Intruder {
            pid: key.pid,
            comm: comm(&intruder.comm),
            protection: Protection::ALL
                .get(key.protection as usize)
                .map_or("unknown", |protection| protection.name()),
            count: intruder.count,
        })
        .collect();
    intruders.sort_by_key(|intruder| std::cmp::Reverse(intruder.count));
    let held = Duration::from_nanos(now().saturating_sub(entry.begun_ns));
    Ok(Status {
        id,
        state: if entry.checkpointing_ns == 0 {
            "PREPARING"
        } else {
            "CHECKPOINTING"
        },
        cgroups: paths(maps, id)?,
        holder_pids: holder_pids(maps, id)?,
        held_seconds: held.as_secs_f64(),
        denials: Protection::ALL
            .into_iter()
            .map(|protection| (protection.name(), entry.denials[protection as usize]))
            .collect(),
        intruders,
        lost_events: entry.lost_events,
    })
}

/// A NUL-padded name of a task.
pub fn comm(bytes: &[u8; 16]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(super) fn paths(maps: &Maps, id: GuardId) -> Result<Vec<PathBuf>, Error> {
    let mut keys: Vec<CgroupKey> = entries(&maps.targets)?
        .into_iter()
        .filter(|(_, of)| *of == id)
        .map(|(key, _)| key)
        .collect();
    keys.sort();
    let unknown =
        |key: CgroupKey| format!("(removed cgroup {}:{})", key.hierarchy_id, key.kernfs_id).into();
    Ok(keys
        .into_iter()
        .map(|key| cgroup::by_key(key).unwrap_or_else(|| unknown(key)))
        .collect())
}

pub(super) fn holder_pids(maps: &Maps, id: GuardId) -> Result<Vec<u32>, Error> {
    let mut pids: Vec<_> = maps
        .members(id)?
        .into_iter()
        .map(|member| member.pid)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}
