//! A checkpoint as a timeline, and guards as a table: for people, as text, SVG and HTML.
//!
//! Everything here is a pure function of the evidence, CRIU's log, the service's history and the
//! journal. A fact that they do not have is named as unknown, and not guessed.

mod guard;
#[cfg(test)]
mod hostile;
mod html;
mod image;
mod journal;
mod svg;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

pub use guard::of_guard;
pub use image::{Sources, of_image};
pub use journal::{JournalLine, journal_line};
pub use table::{Line, Row, Style, table};

use crate::{
    criu::DumpStats,
    guard::{Incident, Status},
    words::{escaped, join, timestamp},
};

/// One checkpoint.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// The checkpoint: the directory of its images, or its guard.
    pub about: String,
    /// The verdict on the checkpoint.
    pub verdict: Conclusion,
    /// The verdict in a sentence.
    pub meaning: String,
    /// Further facts, such as the kernel and CRIU's version.
    pub facts: Vec<Fact>,
    /// The moments of the checkpoint, in the order of time.
    pub timeline: Vec<Moment>,
    /// The phases of the guard and of CRIU's dump.
    pub spans: Vec<Span>,
    /// The statistics of CRIU, or null.
    pub stats: Option<DumpStats>,
    /// The guard at its end.
    pub guard: Option<Status>,
    /// The facts that no source has, a sentence each.
    pub unknown: Vec<String>,
}

/// The verdict on a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Conclusion {
    /// CRIU has succeeded, and no process has disturbed it.
    Good,
    /// CRIU has succeeded, and the disturbance was excused (`--on-violation warn`).
    Excused,
    /// A process has disturbed it, or has ended the guard.
    Violated,
    /// CRIU has failed.
    Failed,
    /// It goes on, was interrupted, or its guard ended before CHECKPOINTING.
    Unfinished,
    /// No violation was counted. The service does not know whether CRIU has succeeded, and it does not
    /// record whether a process ended the guard by force.
    Undisturbed,
}

impl Conclusion {
    /// `good`
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Excused => "excused",
            Self::Violated => "violated",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
            Self::Undisturbed => "undisturbed",
        }
    }

    /// Returns `good` if the checkpoint may be trusted, `open` if too little is known of it, and else
    /// `bad`.
    fn pick<T>(self, good: T, open: T, bad: T) -> T {
        match self {
            Self::Good => good,
            Self::Undisturbed => open,
            Self::Excused | Self::Violated | Self::Failed | Self::Unfinished => bad,
        }
    }
}

/// A fact about a checkpoint.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Fact {
    /// The name of the fact, such as `kernel`.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// A moment of a checkpoint.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Moment {
    /// The time (RFC 3339, UTC).
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub time: SystemTime,
    /// The time since the begin of the timeline, in seconds.
    pub offset_seconds: f64,
    /// The kind of the moment.
    pub kind: Kind,
    /// A description of the moment.
    pub what: String,
    /// The time of the last repetition (RFC 3339, UTC), or null.
    #[serde(serialize_with = "as_optional_text")]
    #[schemars(with = "Option<String>")]
    pub until: Option<SystemTime>,
    /// The intruder, if the moment is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Incident>,
}

/// The kind of a moment. Of two moments at the same time, the one of the earlier kind comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The guard begins.
    Begun,
    /// The cgroups are FROZEN.
    Frozen,
    /// The guard enters CHECKPOINTING.
    Checkpointing,
    /// CRIU starts.
    Started,
    /// CRIU begins something.
    Criu,
    /// CRIU reports an error.
    Error,
    /// The service says something in the journal.
    Journal,
    /// An access is refused.
    Refused,
    /// An access took effect before CHECKPOINTING.
    Disturbance,
    /// An access took effect during CHECKPOINTING.
    Violation,
    /// CRIU has ended.
    Exited,
    /// The guard ends.
    Ended,
}

impl Kind {
    /// Returns `bad` for a violation or an error, `intrusion` for another access of a process that is
    /// not the checkpointer's, and else `other`.
    fn pick<T>(self, bad: T, intrusion: T, other: T) -> T {
        match self {
            Self::Error | Self::Violation => bad,
            Self::Refused | Self::Disturbance => intrusion,
            _ => other,
        }
    }

    /// The word for it in tables.
    fn word(self) -> &'static str {
        match self {
            Self::Begun | Self::Frozen | Self::Checkpointing | Self::Ended => "guard",
            Self::Started | Self::Criu | Self::Exited => "CRIU",
            Self::Error => "ERROR",
            Self::Journal => "service",
            Self::Refused => "refused",
            Self::Disturbance => "repaired",
            Self::Violation => "VIOLATED",
        }
    }
}

/// A phase.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Span {
    /// The actor: the guard or CRIU.
    pub lane: Lane,
    /// The name of the phase, such as `CHECKPOINTING`.
    pub name: &'static str,
    /// The begin (RFC 3339, UTC).
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub from: SystemTime,
    /// The end (RFC 3339, UTC).
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub to: SystemTime,
}

/// The actor of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// The guard.
    Guard,
    /// CRIU.
    Criu,
}

impl Report {
    /// As text of 80 columns.
    pub fn to_text(&self) -> String {
        text::render(self)
    }

    /// As an SVG picture.
    pub fn to_svg(&self) -> String {
        svg::document(self)
    }

    /// As one HTML page.
    pub fn to_html(&self) -> String {
        html::page(self)
    }

    /// The begin of the timeline, and its end.
    fn range(&self) -> Option<(SystemTime, SystemTime)> {
        let ends = self.timeline.iter().flat_map(|moment| {
            let until = moment.until.unwrap_or(moment.time);
            [moment.time, until]
        });
        let ends = ends.chain(self.spans.iter().flat_map(|span| [span.from, span.to]));
        let (first, last) = (ends.clone().min()?, ends.max()?);
        Some((first, last))
    }

    /// Brings the timeline into its order.
    fn sort(&mut self) {
        self.timeline
            .sort_by_key(|moment| (moment.time, moment.kind));
        let first = self.timeline.first().map(|moment| moment.time);
        for moment in &mut self.timeline {
            moment.offset_seconds = seconds(first, moment.time);
        }
    }
}

impl Moment {
    fn new(time: SystemTime, kind: Kind, what: impl Into<String>) -> Self {
        Self {
            time,
            offset_seconds: 0.0,
            kind,
            what: what.into(),
            until: None,
            by: None,
        }
    }
}

/// How long after the first time this is.
fn seconds(first: Option<SystemTime>, time: SystemTime) -> f64 {
    let passed = first.and_then(|first| time.duration_since(first).ok());
    passed.unwrap_or(Duration::ZERO).as_secs_f64()
}

/// The cgroups of a guard, escaped.
fn names(guard: &Status) -> String {
    escaped(&join(&guard.cgroups, ", ")).into_owned()
}

/// A text for SVG and HTML. XML has no form at all for two characters (XML 1.0, 2.2).
fn shown(text: &str) -> String {
    escaped(text).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

fn as_text<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&timestamp(*time))
}

fn as_optional_text<S: Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(timestamp).serialize(serializer)
}
