//! What happens to guarded cgroups, in the order of time: for those who follow it.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use freezer_guard_abi::{CgroupKey, EventKind, GuardId, RawEvent};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zlink::{
    idl,
    introspect::{self, CustomType},
};

use super::{Incident, Outcome, Status, path, unguarded, wall_clock};
use crate::words::{self, escaped, join};

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "EventKind")]
pub enum What {
    /// A cgroup has become a target of the guard.
    Begun,
    /// The guard has entered CHECKPOINTING.
    Checkpointing,
    /// The guard has refused an access: the process got EBUSY.
    Denial,
    /// A process has disturbed the cgroup before CHECKPOINTING. freezer-guard repairs it and tries again.
    Disturbance,
    /// A process has disturbed the cgroup during CHECKPOINTING. Do not trust this checkpoint.
    Violation,
    /// The guard has ended.
    Ended,
    /// A checkpointer has frozen a cgroup and has no guard.
    Unguarded,
    /// A process has executed a checkpointer. Its guard begins when it freezes a cgroup or seizes a task.
    Candidate,
    /// The reader has lost events: they came too fast.
    Lost,
    /// An event that this version of freezer-guard does not know.
    Unknown,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Checkpointing => "checkpointing",
            Self::Denial => "denial",
            Self::Disturbance => "disturbance",
            Self::Violation => "violation",
            Self::Ended => "ended",
            Self::Unguarded => "unguarded",
            Self::Candidate => "candidate",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl introspect::Type for What {
    const TYPE: &'static idl::Type<'static> = &idl::Type::String;
}

/// One event of a guard.
#[derive(Debug, Clone, Serialize, Deserialize, CustomType, JsonSchema)]
pub struct Event {
    /// The time (RFC 3339, UTC). Empty for lost events.
    pub time: String,
    /// The kind of the event.
    pub event: What,
    /// The id of the guard, or 0 if the event belongs to no guard.
    pub guard: GuardId,
    /// The paths of the guarded cgroups, as far as the reader knows them.
    #[serde(serialize_with = "words::texts")]
    pub cgroups: Vec<PathBuf>,
    /// The paths in Base64, if one of them is not valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroups_base64: Option<Vec<String>>,
    /// The event in words.
    pub about: String,
    /// For `begun`: the uid of the user who owns the guard, unless root of the host owns it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner_uid: Option<u32>,
    /// For `denial`, `disturbance` and `violation`: the process and its action.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<Incident>,
    /// For `lost`: the number of lost events.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
}

impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.event == What::Lost {
            return formatter.write_str(&self.about);
        }
        write!(formatter, "{} {}: {}", self.time, self.event, self.about)
    }
}

impl Event {
    fn new(time: &str, event: What, guard: GuardId, cgroups: &[PathBuf]) -> Self {
        Self {
            time: time.to_owned(),
            event,
            guard,
            cgroups: cgroups.to_vec(),
            cgroups_base64: words::all_base64(cgroups),
            about: escaped(&join(cgroups, ", ")).into_owned(),
            owner_uid: None,
            by: None,
            count: None,
        }
    }

    fn begun(time: &str, guard: GuardId, cgroups: &[PathBuf], owner_uid: Option<u32>) -> Self {
        let mut begun = Self::new(time, What::Begun, guard, cgroups);
        if let Some(uid) = owner_uid {
            begun.about += &format!(" (owner: uid {uid})");
        }
        Self { owner_uid, ..begun }
    }

    fn of_incident(
        incident: Incident,
        guard: GuardId,
        outcome: Outcome,
        cgroups: &[PathBuf],
    ) -> Self {
        let event = match outcome {
            Outcome::Refused => What::Denial,
            Outcome::Done if incident.checkpointing => What::Violation,
            Outcome::Done => What::Disturbance,
        };
        Self {
            about: incident.to_string(),
            by: Some(incident.clone()),
            ..Self::new(&incident.last, event, guard, cgroups)
        }
    }

    /// Events that came too fast.
    pub fn lost(count: u64) -> Self {
        Self {
            about: format!(
                "{count} events lost: they came too fast (the counts in `status` are complete)"
            ),
            count: Some(count),
            ..Self::new("", What::Lost, 0, &[])
        }
    }
}

/// Turns the events of the BPF side into events for users. It remembers which cgroups a guard
/// has.
#[derive(Debug, Default)]
pub struct EventDecoder {
    cgroups: BTreeMap<GuardId, Vec<PathBuf>>,
}

impl EventDecoder {
    /// Returns the events of guards in force from before this reader began. An incident that
    /// happened several times is one event, with its count and its last time.
    pub fn so_far(&mut self, guards: &[Status]) -> Vec<Event> {
        let mut all = Vec::new();
        for guard in guards {
            let paths = guard.cgroups.clone();
            let (begun, owner) = (&guard.begun, guard.owner_uid);
            all.push(Event::begun(begun, guard.id, &paths, owner));
            if let Some(time) = &guard.checkpointing {
                all.push(Event::new(time, What::Checkpointing, guard.id, &paths));
            }
            let refused = guard
                .intruders
                .iter()
                .map(|incident| (incident, Outcome::Refused));
            let done = guard
                .violators
                .iter()
                .map(|incident| (incident, Outcome::Done));
            for (incident, outcome) in refused.chain(done) {
                all.push(Event::of_incident(
                    incident.clone(),
                    guard.id,
                    outcome,
                    &paths,
                ));
            }
            self.cgroups.insert(guard.id, paths);
        }
        all.sort_by_cached_key(Event::to_string);
        all
    }

    /// Decodes an event of the BPF side.
    pub fn decode(&mut self, raw: &RawEvent) -> Event {
        let id = raw.guard;
        let time = wall_clock(raw.time_ns);
        let known = self.cgroups.get(&id).cloned().unwrap_or_default();
        match EventKind::ALL.get(raw.kind as usize) {
            Some(EventKind::Denial) => {
                let incident = Incident::of_event(raw, Outcome::Refused);
                Event::of_incident(incident, id, Outcome::Refused, &known)
            }
            Some(EventKind::Disturbance) => {
                let incident = Incident::of_event(raw, Outcome::Done);
                Event::of_incident(incident, id, Outcome::Done, &known)
            }
            Some(EventKind::Begun) => {
                // One comes for each target.
                let path = path(raw.cgroup);
                self.cgroups.entry(id).or_default().push(path.clone());
                let owner = (raw.detail != 0).then_some(raw.victim);
                Event::begun(&time, id, &[path], owner)
            }
            Some(EventKind::Checkpointing) => Event::new(&time, What::Checkpointing, id, &known),
            Some(EventKind::Ended) => {
                self.cgroups.remove(&id);
                Event::new(&time, What::Ended, id, &known)
            }
            Some(EventKind::Unguarded) => {
                // None, if the checkpointer has not written a freezer yet.
                let cgroup = (raw.cgroup != CgroupKey::default()).then(|| path(raw.cgroup));
                Event {
                    about: unguarded(raw),
                    ..Event::new(&time, What::Unguarded, id, cgroup.as_slice())
                }
            }
            Some(EventKind::Candidate) => Event {
                about: format!("pid {} has executed a checkpointer", raw.pid),
                ..Event::new(&time, What::Candidate, id, &known)
            },
            None => Event {
                about: "an event of another version".to_owned(),
                ..Event::new(&time, What::Unknown, id, &known)
            },
        }
    }
}
