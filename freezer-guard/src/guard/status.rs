//! What guards are in force, for people and for JSON.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use aya::maps::{HashMap, MapData};
use freezer_guard_ebpf::{CgroupKey, Guard as Entry, GuardId, Intruder, IntruderKey, Protection};

use super::{
    Deed, Error, Outcome,
    deed::{path, wall_clock},
    marks::{covering, entries, reconcile, tidy},
    now,
};
use crate::{
    cgroup::Cgroup,
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
    /// When it was begun, RFC 3339 in UTC.
    pub begun: String,
    /// When it entered CHECKPOINTING.
    pub checkpointing: Option<String>,
    /// How long it has been held, seconds.
    pub held_seconds: f64,
    /// The protections that were lifted.
    pub allowed: Vec<&'static str>,
    /// What was refused, by [`Protection`].
    pub denials: BTreeMap<&'static str, u64>,
    /// What got through while it was CHECKPOINTING, by [`Protection`].
    pub violations: BTreeMap<&'static str, u64>,
    /// What got through before that and was mended, by [`Protection`].
    pub repaired: BTreeMap<&'static str, u64>,
    /// Who was refused, the most eager first. May be incomplete: `denials` is not.
    pub intruders: Vec<Deed>,
    /// Who got through, in the order of the first times. May be incomplete:
    /// `violations` and `repaired` are not.
    pub violators: Vec<Deed>,
}

impl Status {
    /// How many violations there were.
    pub fn violation_count(&self) -> u64 {
        self.violations.values().sum()
    }

    /// What is known of the violations.
    pub fn violation_deeds(&self) -> impl Iterator<Item = &Deed> {
        self.violators.iter().filter(|deed| deed.checkpointing)
    }

    /// What is known of what came before CHECKPOINTING.
    pub(super) fn repaired_deeds(mut self) -> Vec<Deed> {
        self.violators.retain(|deed| !deed.checkpointing);
        self.violators
    }
}

fn by_protection(counts: &[u64; Protection::COUNT]) -> BTreeMap<&'static str, u64> {
    Protection::ALL
        .into_iter()
        .map(|protection| (protection.name(), counts[protection as usize]))
        .collect()
}

/// Every guard in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list() -> Result<Vec<Status>, Error> {
    list_locked(&Locked::wait()?)
}

pub(super) fn list_locked(lock: &Locked) -> Result<Vec<Status>, Error> {
    let Some(mut maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    reconcile(&mut maps)?;
    tidy(lock, &maps)?;
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
    let mut intruders = deeds(&maps.intruders, id, Outcome::Refused)?;
    intruders.sort_by_key(|deed| std::cmp::Reverse(deed.count));
    let mut violators = deeds(&maps.violators, id, Outcome::Done)?;
    violators.sort_by_key(|deed| deed.first_ns);
    let held = Duration::from_nanos(now().saturating_sub(entry.begun_ns));
    let (violations, repaired) = match entry.checkpointing_ns {
        0 => ([0; Protection::COUNT], entry.disturbances),
        _ => (entry.violations(), entry.repaired),
    };
    Ok(Status {
        id,
        state: if entry.checkpointing_ns == 0 {
            "PREPARING"
        } else {
            "CHECKPOINTING"
        },
        cgroups: paths(maps, id)?,
        holder_pids: holder_pids(maps, id)?,
        begun: wall_clock(entry.begun_ns),
        checkpointing: match entry.checkpointing_ns {
            0 => None,
            time => Some(wall_clock(time)),
        },
        held_seconds: held.as_secs_f64(),
        allowed: Protection::ALL
            .into_iter()
            .filter(|protection| !Entry::protects(entry.allowed, *protection))
            .map(Protection::name)
            .collect(),
        denials: by_protection(&entry.denials),
        violations: by_protection(&violations),
        repaired: by_protection(&repaired),
        intruders,
        violators,
    })
}

fn deeds(
    map: &HashMap<MapData, IntruderKey, Intruder>,
    id: GuardId,
    outcome: Outcome,
) -> Result<Vec<Deed>, Error> {
    Ok(entries(map)?
        .iter()
        .filter(|(key, _)| key.guard == id)
        .map(|(key, intruder)| Deed::of_intruder(key, intruder, outcome))
        .collect())
}

pub(super) fn paths(maps: &Maps, id: GuardId) -> Result<Vec<PathBuf>, Error> {
    let mut keys: Vec<CgroupKey> = entries(&maps.targets)?
        .into_iter()
        .filter(|(_, of)| *of == id)
        .map(|(key, _)| key)
        .collect();
    keys.sort();
    Ok(keys.into_iter().map(|key| path(key).into()).collect())
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
