//! A checkpoint as a timeline, and guards as a table: for people, as text, SVG and HTML.
//!
//! Everything here is a pure function of the evidence, CRIU's log, the service's history and the
//! journal. A fact that they do not have is named as unknown, and not guessed.

mod guard;
mod html;
mod image;
mod journal;
mod svg;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

pub use guard::of_guard;
pub use image::{Sources, of_image};
pub use journal::{JournalLine, journal_line};
pub use table::{Line, Row, Style, table};

use crate::{
    criu::DumpStats,
    guard::{Incident, Status},
    words::{escaped, timestamp},
};

/// One checkpoint.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The checkpoint: the directory of its images, or its guard.
    pub about: String,
    /// How it ended.
    pub verdict: Conclusion,
    /// The same in a sentence.
    pub meaning: String,
    /// What is known besides the timeline.
    pub facts: Vec<Fact>,
    /// What happened, in the order of time.
    pub timeline: Vec<Moment>,
    /// What lasted: the parts of the guard and of CRIU's dump.
    pub spans: Vec<Span>,
    /// What CRIU counted.
    pub stats: Option<DumpStats>,
    /// The guard at its end.
    pub guard: Option<Status>,
    /// What the sources do not say, a sentence each.
    pub unknown: Vec<String>,
}

/// How a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Conclusion {
    /// CRIU has succeeded, and nobody has disturbed it.
    Good,
    /// CRIU has succeeded, and the disturbance was excused (`--on-violation warn`).
    Excused,
    /// Somebody has disturbed it, or has ended the guard.
    Violated,
    /// CRIU has failed.
    Failed,
    /// It goes on, or was interrupted.
    Unfinished,
    /// Nobody has disturbed it. The service does not know whether CRIU has succeeded.
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

    /// Whether the checkpoint may be trusted, as far as it is known.
    pub fn is_fine(self) -> bool {
        matches!(self, Self::Good | Self::Undisturbed)
    }
}

/// Something that is known of a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    /// What it is: `kernel`.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Moment {
    /// When.
    #[serde(serialize_with = "as_text")]
    pub time: SystemTime,
    /// How long after the begin of the timeline, seconds.
    pub offset_seconds: f64,
    /// Of what kind.
    pub kind: Kind,
    /// What, in words.
    pub what: String,
    /// When it happened for the last time, if it happened more than once.
    #[serde(serialize_with = "as_optional_text")]
    pub until: Option<SystemTime>,
    /// Who did it, if it is about an intruder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Incident>,
}

/// The kind of a moment. Of two moments at the same time, the one of the earlier kind comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
    /// Whether it is about somebody who disturbs, or an error.
    fn is_bad(self) -> bool {
        matches!(self, Self::Error | Self::Violation)
    }

    /// Whether somebody else than the checkpointer did it.
    fn is_intrusion(self) -> bool {
        matches!(self, Self::Refused | Self::Disturbance | Self::Violation)
    }

    /// The word for it in tables.
    fn word(self) -> &'static str {
        match self {
            Self::Begun | Self::Frozen | Self::Checkpointing | Self::Ended => "guard",
            Self::Started | Self::Criu | Self::Exited => "CRIU",
            Self::Error => "ERROR",
            Self::Journal => "service",
            Self::Refused => "refused",
            Self::Disturbance => "mended",
            Self::Violation => "VIOLATED",
        }
    }
}

/// Something that lasted.
#[derive(Debug, Clone, Serialize)]
pub struct Span {
    /// Whose it is.
    pub lane: Lane,
    /// Its name, such as `CHECKPOINTING`.
    pub name: &'static str,
    /// When it began.
    #[serde(serialize_with = "as_text")]
    pub from: SystemTime,
    /// When it ended.
    #[serde(serialize_with = "as_text")]
    pub to: SystemTime,
}

/// Whose spans they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// The guard's.
    Guard,
    /// CRIU's.
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

/// A text for SVG and HTML. XML has no form at all for two characters (XML 1.0, 2.2).
fn shown(text: &str) -> String {
    escaped(text).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
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
