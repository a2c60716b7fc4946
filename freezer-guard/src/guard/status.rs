//! What guards are in force, for people and for JSON.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use aya::maps::{HashMap, MapData};
use freezer_guard_ebpf::{
    CgroupKey, Guard as Entry, GuardId, Intruder, IntruderKey, Level, Protection,
};

use super::{
    Deed, Error, Outcome,
    deed::{path, wall_clock},
    marks::{covering, entries, in_force, reconcile, tidy},
    now,
};
use serde::{Deserialize, Serialize};
use zlink::introspect::CustomType;

use crate::{
    cgroup::Cgroup,
    kernel::{Locked, Maps},
};

/// What a guard did.
#[derive(Debug, Clone, Serialize, Deserialize, CustomType)]
pub struct Status {
    /// Its id.
    pub id: GuardId,
    /// CHECKPOINTING, PREPARING while it is being begun, or ENDED.
    pub state: String,
    /// Whether nobody asked for it: a checkpointer was found writing the freezer.
    pub automatic: bool,
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
    /// The weakest level of the protections that are in force.
    pub level: String,
    /// How far each [`Protection`] goes.
    pub levels: BTreeMap<String, String>,
    /// The protections that were lifted.
    pub allowed: Vec<String>,
    /// What was refused, by [`Protection`].
    pub denials: BTreeMap<String, u64>,
    /// What got through while it was CHECKPOINTING, by [`Protection`].
    pub violations: BTreeMap<String, u64>,
    /// What got through before that and was mended, by [`Protection`].
    pub repaired: BTreeMap<String, u64>,
    /// Calls that the tripwires for `ptrace` have missed, because the kernel has
    /// preempted them: each may have been a violation.
    pub missed: u64,
    /// Whether its cgroups were frozen for it, and nobody has thawed them at its end.
    pub froze: bool,
    /// Who was refused, the most eager first. May be incomplete: `denials` is not.
    pub intruders: Vec<Deed>,
    /// Who got through, in the order of the first times. May be incomplete:
    /// `violations` and `repaired` are not.
    pub violators: Vec<Deed>,
}

impl Status {
    /// How many violations there were, or may have been.
    pub fn violation_count(&self) -> u64 {
        self.violations.values().sum::<u64>() + self.missed
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

fn by_protection(counts: &[u64; Protection::COUNT]) -> BTreeMap<String, u64> {
    Protection::ALL
        .into_iter()
        .map(|protection| (protection.name().to_owned(), counts[protection as usize]))
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
    for (id, entry) in in_force(&maps)? {
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
    let until = match entry.ended_ns {
        0 => now(),
        time => time,
    };
    let held = Duration::from_nanos(until.saturating_sub(entry.begun_ns));
    let (violations, repaired) = match entry.checkpointing_ns {
        0 => ([0; Protection::COUNT], entry.disturbances),
        _ => (entry.violations(), entry.repaired),
    };
    Ok(Status {
        id,
        state: match (entry.ended_ns, entry.checkpointing_ns) {
            (0, 0) => "PREPARING",
            (0, _) => "CHECKPOINTING",
            _ => "ENDED",
        }
        .to_owned(),
        automatic: entry.leader != 0,
        cgroups: paths(maps, id)?,
        holder_pids: holder_pids(maps, id)?,
        begun: wall_clock(entry.begun_ns),
        checkpointing: match entry.checkpointing_ns {
            0 => None,
            time => Some(wall_clock(time)),
        },
        held_seconds: held.as_secs_f64(),
        level: level(entry).to_owned(),
        levels: Protection::ALL
            .into_iter()
            .map(|protection| {
                let level = name(entry.levels[protection as usize]);
                (protection.name().to_owned(), level.to_owned())
            })
            .collect(),
        missed: missed(maps, entry)?,
        allowed: Protection::ALL
            .into_iter()
            .filter(|protection| !Entry::protects(entry.allowed, *protection))
            .map(|protection| protection.name().to_owned())
            .collect(),
        denials: by_protection(&entry.denials),
        violations: by_protection(&violations),
        repaired: by_protection(&repaired),
        froze: entry.flags & Entry::FROZE != 0,
        intruders,
        violators,
    })
}

fn name(level: u32) -> &'static str {
    Level::name_of(Level::ALL.into_iter().find(|known| *known as u32 == level))
}

fn level(entry: &Entry) -> &'static str {
    let weakest = Protection::ALL
        .into_iter()
        .filter(|protection| Entry::protects(entry.allowed, *protection))
        .map(|protection| entry.levels[protection as usize])
        .min();
    weakest.map_or("nothing is protected", name)
}

/// See [`Status::missed`].
pub(super) fn missed(maps: &Maps, entry: &Entry) -> Result<u64, Error> {
    if entry.checkpointing_ns == 0 || !Entry::protects(entry.allowed, Protection::Ptrace) {
        return Ok(0);
    }
    Ok(maps.missed()?.saturating_sub(entry.missed_before))
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
