//! What a guard did, for people and for JSON.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use freezer_guard_abi::{CgroupKey, GuardEntry, GuardId, Intruder, IntruderKey, Level, Protection};

use super::{
    Error, Incident, Outcome,
    entries::{holder_pids, targets},
    incident::wall_clock,
    now,
    store::GuardStore,
};
use nix::unistd::getpid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zlink::{
    idl,
    introspect::{self, CustomType},
};

use crate::words;

/// The state of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(rename = "GuardState")]
pub enum State {
    /// The guard is being set up: it refuses already, and its cgroups are not all FROZEN yet.
    Preparing,
    /// The guard is in force, and each disturbance is a violation.
    Checkpointing,
    /// The guard has ended.
    Ended,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Preparing => "PREPARING",
            Self::Checkpointing => "CHECKPOINTING",
            Self::Ended => "ENDED",
        })
    }
}

impl introspect::Type for State {
    const TYPE: &'static idl::Type<'static> = &idl::Type::String;
}

/// A guard: its cgroups, its holder, and the processes that it refused or that got through.
#[derive(Debug, Clone, Serialize, Deserialize, CustomType, JsonSchema)]
#[schemars(rename = "Guard")]
// The interface has a method `Status`: systemd allows no type of that name beside it.
#[zlink(rename = "Guard")]
pub struct Status {
    /// The id of the guard, which `freezer-guard end --guard` takes.
    pub id: GuardId,
    /// How far the guard has come.
    pub state: State,
    /// Whether the kernel side began the guard by itself, for a checkpointer without one.
    pub automatic: bool,
    /// Whether the guard has no cgroup of its own: CRIU uses no freezer, and the guard protects the
    /// tasks that CRIU has seized, and the freezers of their cgroups.
    #[serde(default)]
    pub seized: bool,
    /// The paths of the guarded cgroups. A removed cgroup appears as `(removed cgroup ID)`.
    #[serde(serialize_with = "words::texts")]
    pub cgroups: Vec<PathBuf>,
    /// The paths in Base64, if one of them is not valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroups_base64: Option<Vec<String>>,
    /// The processes of the holder: only they may freeze, thaw, signal, move and trace.
    pub holder_pids: Vec<u32>,
    /// The uid of the user who owns the guard. Such a guard refuses nothing to processes with
    /// authority over that user, such as those of root. Null if root of the host owns it.
    #[serde(default)]
    pub owner_uid: Option<u32>,
    /// The time when the guard began (RFC 3339, UTC).
    pub begun: String,
    /// The time when all cgroups of the guard were FROZEN, before CHECKPOINTING (RFC 3339, UTC). Only
    /// the process that has begun the guard knows it: the kernel does not keep it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frozen: Option<String>,
    /// The time when the guard entered CHECKPOINTING (RFC 3339, UTC), or null.
    pub checkpointing: Option<String>,
    /// How long the guard has been held, in seconds.
    pub held_seconds: f64,
    /// The weakest level among the protections in force.
    pub level: String,
    /// The level of each protection: `enforce`, `best-effort`, `detect` or `missing`.
    pub levels: BTreeMap<String, String>,
    /// The protections that `--allow` has lifted.
    pub allowed: Vec<String>,
    /// The number of refused attempts, by protection.
    pub denials: BTreeMap<String, u64>,
    /// The number of violations, by protection: disturbances during CHECKPOINTING.
    pub violations: BTreeMap<String, u64>,
    /// The number of disturbances before CHECKPOINTING, by protection. They are repaired.
    pub repaired: BTreeMap<String, u64>,
    /// The number of calls that BPF programs may have missed, since this kernel preempts them. Each
    /// counts as a violation.
    pub missed: u64,
    /// Whether the kernel did not call the BPF programs all the time, since a process has switched
    /// function tracing off or detached a program. It counts as a violation.
    #[serde(default)]
    pub unproven: bool,
    /// Whether freezer-guard froze the cgroups, and has not thawed them since.
    pub froze: bool,
    /// The processes that were refused, the most frequent first. The list may be incomplete; the
    /// counts in `denials` are complete.
    pub intruders: Vec<Incident>,
    /// The processes that got through, in the order of their first time. The list may be
    /// incomplete; the counts in `violations` and `repaired` are complete.
    pub violators: Vec<Incident>,
}

impl Status {
    /// Gives its cgroups these names.
    pub fn name_cgroups(&mut self, cgroups: Vec<PathBuf>) {
        self.cgroups_base64 = words::all_base64(&cgroups);
        self.cgroups = cgroups;
    }

    /// How many violations there were, or may have been.
    pub fn violation_count(&self) -> u64 {
        total(&self.violations)
            .saturating_add(self.missed)
            .saturating_add(u64::from(self.unproven))
    }

    /// What is known of the violations.
    pub fn violation_incidents(&self) -> impl Iterator<Item = &Incident> {
        self.violators
            .iter()
            .filter(|incident| incident.checkpointing)
    }

    /// What is known of what came before CHECKPOINTING.
    pub(super) fn repaired_incidents(mut self) -> Vec<Incident> {
        self.violators.retain(|incident| !incident.checkpointing);
        self.violators
    }
}

/// Returns the sum of the counts of all protections. Evidence of an image may hold any number.
pub(crate) fn total(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().copied().fold(0, u64::saturating_add)
}

/// The disturbances during CHECKPOINTING.
pub(super) fn violations(entry: &GuardEntry) -> [u64; Protection::COUNT] {
    match entry.checkpointing_ns {
        0 => [0; Protection::COUNT],
        _ => entry.violations(),
    }
}

pub(super) fn by_protection(counts: &[u64; Protection::COUNT]) -> BTreeMap<String, u64> {
    Protection::ALL
        .into_iter()
        .map(|protection| (protection.name().to_owned(), counts[protection as usize]))
        .collect()
}

/// What is known of a guard besides its entry.
#[derive(Default)]
pub(super) struct Snapshot {
    targets: Vec<CgroupKey>,
    pids: Vec<u32>,
    /// The most eager first.
    intruders: Vec<Incident>,
    /// In the order of the first times.
    violators: Vec<Incident>,
}

impl Snapshot {
    /// Of one guard with these targets.
    pub(super) fn of_one(
        store: &dyn GuardStore,
        id: GuardId,
        entry: &GuardEntry,
        targets: Vec<CgroupKey>,
    ) -> Result<Self, Error> {
        let pids = match entry.members {
            0 => Vec::new(),
            _ => holder_pids(store, id)?,
        };
        Self::of(store, id, entry, targets, pids)
    }

    /// The same when the calling thread is the whole holder: members are looked for among
    /// all tasks of the host.
    pub(super) fn of_own(
        store: &dyn GuardStore,
        id: GuardId,
        entry: &GuardEntry,
        targets: Vec<CgroupKey>,
    ) -> Result<Self, Error> {
        Self::of(store, id, entry, targets, vec![getpid().as_raw() as u32])
    }

    fn of(
        store: &dyn GuardStore,
        id: GuardId,
        entry: &GuardEntry,
        targets: Vec<CgroupKey>,
        pids: Vec<u32>,
    ) -> Result<Self, Error> {
        let mut seen = Self {
            targets,
            pids,
            ..Self::default()
        };
        // Who did nothing was not written down.
        if entry.denials != [0; Protection::COUNT] {
            for (key, intruder) in store.intruders().entries()? {
                if key.guard == id {
                    seen.has_tried(&key, &intruder);
                }
            }
        }
        if entry.disturbances != [0; Protection::COUNT] {
            for (key, intruder) in store.violators().entries()? {
                if key.guard == id {
                    seen.has_done(&key, &intruder);
                }
            }
        }
        seen.sort();
        Ok(seen)
    }

    /// Of all guards: each map is read once.
    pub(super) fn of_all(store: &dyn GuardStore) -> Result<BTreeMap<GuardId, Self>, Error> {
        let mut all: BTreeMap<GuardId, Self> = BTreeMap::new();
        for (key, id) in store.targets().entries()? {
            all.entry(id).or_default().targets.push(key);
        }
        for member in store.members(None)? {
            all.entry(member.guard).or_default().pids.push(member.pid);
        }
        for (key, intruder) in store.intruders().entries()? {
            all.entry(key.guard).or_default().has_tried(&key, &intruder);
        }
        for (key, intruder) in store.violators().entries()? {
            all.entry(key.guard).or_default().has_done(&key, &intruder);
        }
        all.values_mut().for_each(Self::sort);
        Ok(all)
    }

    fn has_tried(&mut self, key: &IntruderKey, intruder: &Intruder) {
        let incident = Incident::of_intruder(key, intruder, Outcome::Refused);
        self.intruders.push(incident);
    }

    fn has_done(&mut self, key: &IntruderKey, intruder: &Intruder) {
        let incident = Incident::of_intruder(key, intruder, Outcome::Done);
        self.violators.push(incident);
    }

    fn sort(&mut self) {
        self.targets.sort_unstable();
        self.pids.sort_unstable();
        self.pids.dedup();
        self.intruders
            .sort_by_key(|incident| std::cmp::Reverse(incident.count));
        self.violators.sort_by_key(|incident| incident.first_ns);
    }

    pub(super) fn status(
        self,
        store: &dyn GuardStore,
        id: GuardId,
        entry: &GuardEntry,
    ) -> Result<Status, Error> {
        let until = match entry.ended_ns {
            0 => now(),
            time => time,
        };
        let held = Duration::from_nanos(until.saturating_sub(entry.begun_ns));
        let repaired = match entry.checkpointing_ns {
            0 => entry.disturbances,
            _ => entry.repaired,
        };
        let seized = entry.flags & GuardEntry::SEIZES != 0;
        let first = (seized && self.targets.is_empty()).then_some(&entry.target);
        let targets = self.targets.iter().chain(first);
        let cgroups: Vec<_> = targets.map(|key| store.name(*key)).collect();
        Ok(Status {
            id,
            state: match (entry.ended_ns, entry.checkpointing_ns) {
                (0, 0) => State::Preparing,
                (0, _) => State::Checkpointing,
                _ => State::Ended,
            },
            automatic: entry.is_automatic(),
            seized,
            cgroups_base64: words::all_base64(&cgroups),
            cgroups,
            holder_pids: self.pids,
            owner_uid: (entry.flags & GuardEntry::BY_USER != 0).then_some(entry.owner_uid as u32),
            begun: wall_clock(entry.begun_ns),
            frozen: None,
            checkpointing: (entry.checkpointing_ns != 0)
                .then(|| wall_clock(entry.checkpointing_ns)),
            held_seconds: held.as_secs_f64(),
            level: level(entry).to_owned(),
            levels: Protection::ALL
                .into_iter()
                .map(|protection| {
                    let level = name(entry.levels[protection as usize]);
                    (protection.name().to_owned(), level.to_owned())
                })
                .collect(),
            missed: missed(store, entry)?,
            allowed: Protection::ALL
                .into_iter()
                .filter(|protection| !GuardEntry::protects(entry.allowed, *protection))
                .map(|protection| protection.name().to_owned())
                .collect(),
            denials: by_protection(&entry.denials),
            violations: by_protection(&violations(entry)),
            repaired: by_protection(&repaired),
            unproven: entry.flags & GuardEntry::UNPROVEN != 0,
            froze: entry.flags & GuardEntry::FROZEN_BY_US != 0,
            intruders: self.intruders,
            violators: self.violators,
        })
    }
}

/// The status of one guard.
pub(super) fn status(
    store: &dyn GuardStore,
    id: GuardId,
    entry: &GuardEntry,
) -> Result<Status, Error> {
    Snapshot::of_one(store, id, entry, targets(store, id)?)?.status(store, id, entry)
}

fn name(level: u32) -> &'static str {
    Level::name_of(Level::ALL.into_iter().find(|known| *known as u32 == level))
}

fn level(entry: &GuardEntry) -> &'static str {
    let weakest = Protection::ALL
        .into_iter()
        .filter(|protection| GuardEntry::protects(entry.allowed, *protection))
        .map(|protection| entry.levels[protection as usize])
        .min();
    weakest.map_or("nothing is protected", name)
}

/// See [`Status::missed`].
pub(super) fn missed(store: &dyn GuardStore, entry: &GuardEntry) -> Result<u64, Error> {
    match may_miss(entry) {
        true => Ok(missed_of(store.missed()?, entry)),
        false => Ok(0),
    }
}

/// The same, where the store has counted this many by now.
pub(super) fn missed_of(now: u64, entry: &GuardEntry) -> u64 {
    match may_miss(entry) {
        true => now.saturating_sub(entry.missed_before),
        false => 0,
    }
}

pub(super) fn may_miss(entry: &GuardEntry) -> bool {
    entry.checkpointing_ns != 0 && GuardEntry::protects(entry.allowed, Protection::Ptrace)
}

#[cfg(test)]
impl Status {
    /// A guard as version 0.1.0 wrote it, without the fields that it left out.
    pub(crate) const OLD: &str = r#"{
        "id": 7, "state": "ENDED", "automatic": true, "cgroups": ["/sys/fs/cgroup/app"],
        "holder_pids": [], "begun": "2026-01-01T00:00:00.000Z", "checkpointing": null,
        "held_seconds": 1.5, "level": "enforce", "levels": {"freeze": "enforce"}, "allowed": [],
        "denials": {"freeze": 2}, "violations": {"freeze": 0}, "repaired": {"freeze": 0},
        "missed": 0, "froze": false, "intruders": [], "violators": []
    }"#;
}

#[cfg(test)]
mod tests {
    use super::Status;

    /// The history of the service (`last.json`) is a list of these.
    #[test]
    fn a_guard_of_an_earlier_version_is_read() {
        let guards: Vec<Status> =
            serde_json::from_str(&format!("[{}]", Status::OLD)).expect("it is read");
        assert_eq!(guards[0].id, 7);
        assert_eq!(guards[0].owner_uid, None);
        assert_eq!(guards[0].denials["freeze"], 2);
    }
}
