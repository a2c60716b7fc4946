//! The report on an image.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use super::{
    Conclusion, Fact, Kind, Lane, Moment, Report, Span,
    guard::{Life, add_guard, expect_order, facts, in_order},
};
use crate::{
    criu::{Action, DumpStats, Error, Log, Record, Stages, Verdict},
    json::VERSION,
    words::{escaped, join, mebibytes, time_of},
};

/// How many processes of the tree have a moment of their own.
const NAMED: usize = 12;
/// CRIU's log in a directory of images.
const LOG: &str = "dump.log";

/// The sources about an image.
#[derive(Debug)]
pub struct Sources {
    /// The directory.
    pub dir: String,
    /// The evidence.
    pub record: Record,
    /// CRIU's log, or why it cannot be read.
    pub stages: Result<Stages, String>,
    /// When the log's file was created.
    pub log_created: Option<SystemTime>,
    /// What CRIU counted, or why that cannot be read.
    pub stats: Result<Option<DumpStats>, String>,
}

impl Sources {
    /// Reads them from a directory.
    ///
    /// # Errors
    /// When it has no evidence: without it nothing else is of use.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(LOG);
        Ok(Self {
            dir: dir.display().to_string(),
            record: Record::of_images(dir)?,
            stages: Stages::read(&path).map_err(|error| error.to_string()),
            log_created: Log::new(dir, LOG).begun(),
            stats: DumpStats::read(dir).map_err(|error| crate::guard::chain(&error)),
        })
    }
}

/// The report on an image.
pub fn of_image(sources: Sources) -> Report {
    let Sources {
        dir,
        record,
        stages,
        log_created,
        stats,
    } = sources;
    let mut report = Report {
        about: format!("checkpoint {}", escaped(&dir)),
        verdict: conclusion(record.verdict),
        meaning: meaning(&record),
        facts: image_facts(&record),
        timeline: Vec::new(),
        spans: Vec::new(),
        stats: None,
        guard: None,
        unknown: Vec::new(),
    };
    add_evidence(&mut report, &record);
    match stages {
        Ok(stages) => add_criu(&mut report, &record, &stages, log_created),
        Err(error) => report
            .unknown
            .push(format!("what CRIU did: its {LOG} cannot be read: {error}")),
    }
    add_process(&mut report, &record);
    match stats {
        Ok(Some(stats)) => add_stats(&mut report, stats),
        Ok(None) => report
            .unknown
            .push("CRIU's counts: it writes `stats-dump` only at its successful end".to_owned()),
        Err(error) => report.unknown.push(format!("CRIU's counts: {error}")),
    }
    expect_order(&mut report, &times(&record));
    report.sort();
    report.guard = record.guard().cloned();
    report
}

/// Adds what the evidence has of the guard.
fn add_evidence(report: &mut Report, record: &Record) {
    if let Some(version) = record.version.filter(|version| *version > VERSION) {
        report.unknown.push(format!(
            "the meaning of the whole evidence: its format has version {version}, and this \
             freezer-guard knows version {VERSION}"
        ));
    }
    match record.guard() {
        Some(guard) => {
            report.facts.extend(facts(guard));
            add_guard(report, guard);
            if guard.frozen.is_none() {
                report
                    .unknown
                    .push(missing(record, "when the cgroup was FROZEN"));
            }
        }
        None if record.has_foreign_guard() => report
            .unknown
            .push("the guard: this version does not understand the evidence".to_owned()),
        None if record.verdict.is_none() => report
            .unknown
            .push("the guard: the evidence has it when CRIU is done".to_owned()),
        None => report
            .unknown
            .push("what the guard saw: a process ended it before CRIU was done".to_owned()),
    }
}

/// The times of the evidence, each of which follows the one before.
fn times(record: &Record) -> [Option<SystemTime>; 7] {
    let life = record.guard().and_then(Life::of);
    let life = life.as_ref();
    [
        life.map(|life| life.begun),
        life.and_then(|life| life.frozen),
        life.and_then(|life| life.checkpointing),
        time(record.started.as_deref()),
        time(record.log_begun.as_deref()),
        time(record.ended.as_deref()),
        life.map(|life| life.ended),
    ]
}

fn time(text: Option<&str>) -> Option<SystemTime> {
    text.and_then(time_of)
}

/// When the guard entered CHECKPOINTING.
fn checkpointing(record: &Record) -> Option<SystemTime> {
    time(record.guard()?.checkpointing.as_deref())
}

/// The sentence about a time that the evidence has from this version on, when CRIU is done.
fn missing(record: &Record, what: &str) -> String {
    match record.verdict {
        None => format!("{what}: the evidence has it when CRIU is done"),
        Some(_) => format!("{what}: the evidence is of an earlier version, or incomplete"),
    }
}

fn conclusion(verdict: Option<Verdict>) -> Conclusion {
    match verdict {
        None => Conclusion::Unfinished,
        Some(Verdict::Good) => Conclusion::Good,
        Some(Verdict::Excused) => Conclusion::Excused,
        Some(Verdict::Violated) => Conclusion::Violated,
        Some(Verdict::Failed) => Conclusion::Failed,
    }
}

fn meaning(record: &Record) -> String {
    match record.verdict {
        None => "the checkpoint goes on, or was interrupted".to_owned(),
        Some(Verdict::Good) => "CRIU succeeded, and no process disturbed it".to_owned(),
        Some(Verdict::Excused) => {
            "CRIU succeeded; a process disturbed it, and --on-violation warn excuses that"
                .to_owned()
        }
        Some(Verdict::Violated) if record.has_guard() => {
            "a process disturbed it while it was CHECKPOINTING: remove it and take another"
                .to_owned()
        }
        Some(Verdict::Violated) => {
            "a process ended the guard: remove the image and take another".to_owned()
        }
        Some(Verdict::Failed) => match record.exit_code {
            Some(code) if code != 0 => format!("CRIU failed with exit code {code}"),
            _ => "CRIU failed, or its images could not be written to the disk".to_owned(),
        },
    }
}

fn image_facts(record: &Record) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add = |name, value: String| {
        if !value.is_empty() {
            facts.push(Fact { name, value });
        }
    };
    let comm = escaped(&record.comm);
    let after = match (record.verdict, record.left_running) {
        (None, _) => "",
        (_, true) => ", left running",
        (_, false) => ", ended",
    };
    add("tree", format!("pid {} ({comm}){after}", record.pid));
    if record.guard().is_none() {
        add("cgroup", escaped(&join(&record.cgroups, ", ")).into_owned());
    }
    let kind = if record.pre_dump { "pre-dump by " } else { "" };
    let criu = record.criu.trim_start_matches("Version: ");
    let criu = format!("{kind}CRIU {criu} on Linux {}", record.kernel);
    add("made by", escaped(&criu).into_owned());
    if record.image_bytes > 0 {
        let memory = mebibytes(record.memory_bytes);
        let all = mebibytes(record.image_bytes);
        add("size", format!("{memory} of memory, {all} in all"));
    }
    facts
}

/// Adds what CRIU did. Its clock begins with its log.
fn add_criu(
    report: &mut Report,
    record: &Record,
    stages: &Stages,
    log_created: Option<SystemTime>,
) {
    let end = report.range().map(|(_, end)| end);
    let checkpointing = checkpointing(record);
    // A copy of the image has files of another time.
    let is_of_then = |time: &SystemTime| {
        record.verdict.is_none() || Some(*time) >= checkpointing && Some(*time) <= end
    };
    let log_begun = time(record.log_begun.as_deref());
    let zero = log_begun.or(log_created.filter(is_of_then));
    if record.verdict.is_none() && log_begun.is_none() && zero.is_some() {
        report.unknown.push(format!(
            "whether the times of CRIU are right: they count from the creation of {LOG}, and a copy \
             of the image has a later one"
        ));
    }
    if stages.is_cut {
        let rest = format!("all that CRIU did: {LOG} is too long, and a part of it is left out");
        report.unknown.push(rest);
    }
    match (zero.or(time(record.started.as_deref())), checkpointing) {
        (Some(zero), _) => add_steps(report, zero, stages),
        (None, Some(checkpointing)) => {
            report.unknown.push(format!(
                "{}. The times of CRIU are shown as if it had started when the guard entered \
                 CHECKPOINTING: they are a little too early",
                missing(record, "when CRIU started")
            ));
            add_steps(report, checkpointing, stages);
        }
        (None, None) => {
            let started = missing(record, "when CRIU started, and so the times of what it did");
            report.unknown.push(started);
        }
    }
}

fn add_steps(report: &mut Report, zero: SystemTime, stages: &Stages) {
    let dumps = stages.steps.iter().filter_map(|step| match step.action {
        Action::Dump { pages, .. } => Some(pages),
        _ => None,
    });
    let hidden: Vec<u64> = dumps.skip(NAMED).collect();
    let mut dumped = 0;
    for step in &stages.steps {
        let is_dump = matches!(step.action, Action::Dump { .. });
        dumped += usize::from(is_dump);
        let (kind, what) = match &step.action {
            Action::Dump { .. } if dumped == NAMED + 1 => {
                let (count, pages) = (
                    hidden.len(),
                    hidden.iter().copied().fold(0, u64::saturating_add),
                );
                let what = format!("CRIU dumps {count} more processes: {pages} pages of memory");
                (Kind::Criu, what)
            }
            Action::Dump { .. } if dumped > NAMED => continue,
            Action::Error(_) => (Kind::Error, words(&step.action)),
            action => (Kind::Criu, words(action)),
        };
        let moment = Moment::new(after(zero, step.at), kind, what);
        report.timeline.push(moment);
    }
    add_spans(report, zero, stages);
}

/// The time that is so long after the first one.
fn after(zero: SystemTime, passed: Duration) -> SystemTime {
    zero.checked_add(passed).unwrap_or(zero)
}

fn words(action: &Action) -> String {
    let text = match action {
        Action::Seize => "CRIU freezes the cgroup and seizes its tasks",
        Action::Dump { pid, pages } => {
            return format!("CRIU dumps pid {pid}: {pages} pages of memory");
        }
        Action::Share => "CRIU writes what the processes share",
        Action::WriteMemory => "CRIU writes the memory, while the tasks run",
        Action::Ask => "CRIU asks whether the checkpoint is good",
        Action::Resume => "CRIU lets the tasks run",
        Action::End => "CRIU ends the tasks",
        Action::Succeed => "CRIU reports success",
        Action::Fail => "CRIU reports failure",
        Action::Error(text) => return format!("CRIU: {}", escaped(text)),
    };
    text.to_owned()
}

/// Each part of the dump lasts until the next one begins.
fn add_spans(report: &mut Report, zero: SystemTime, stages: &Stages) {
    let name = |action: &Action| match action {
        Action::Seize => Some("seize"),
        Action::Dump { .. } => Some("dump"),
        Action::Share => Some("share"),
        Action::WriteMemory => Some("write"),
        Action::Ask => Some("ask"),
        Action::Resume => Some("resume"),
        Action::End => Some("end"),
        Action::Succeed | Action::Fail | Action::Error(_) => None,
    };
    let mut parts: Vec<(&'static str, Duration)> = vec![("start", Duration::ZERO)];
    for step in &stages.steps {
        if let Some(name) = name(&step.action)
            && parts.last().is_none_or(|(last, _)| *last != name)
        {
            parts.push((name, step.at));
        }
    }
    let ends = parts.iter().skip(1).map(|(_, at)| *at);
    for ((name, from), to) in parts.iter().zip(ends.chain([stages.last])) {
        report.spans.push(Span {
            lane: Lane::Criu,
            name,
            from: after(zero, *from),
            to: after(zero, to),
        });
    }
}

/// Adds when CRIU's process began and ended.
fn add_process(report: &mut Report, record: &Record) {
    let earliest = checkpointing(record).unwrap_or(SystemTime::UNIX_EPOCH);
    let time = |text: &Option<String>| in_order(earliest, time(text.as_deref()));
    if let Some(started) = time(&record.started) {
        let moment = Moment::new(started, Kind::Started, "CRIU is started");
        report.timeline.push(moment);
    }
    match time(&record.ended) {
        Some(ended) => {
            let code = record
                .exit_code
                .map_or("?".to_owned(), |code| code.to_string());
            let what = format!("CRIU has ended with exit code {code}");
            report.timeline.push(Moment::new(ended, Kind::Exited, what));
        }
        None => report.unknown.push(missing(record, "when CRIU ended")),
    }
}

fn add_stats(report: &mut Report, stats: DumpStats) {
    let shared = match stats.shpages_written {
        Some(pages @ 1..) => format!(", and {pages} shared ones"),
        _ => String::new(),
    };
    let parent = match stats.pages_skipped_parent {
        0 => String::new(),
        pages => format!(", {pages} are in the parent image"),
    };
    let seconds = |micros: u32| f64::from(micros) / 1e6;
    report.facts.push(Fact {
        name: "pages",
        value: format!(
            "{} written{shared} of {} scanned{parent}",
            stats.pages_written, stats.pages_scanned
        ),
    });
    report.facts.push(Fact {
        name: "stopped",
        value: format!(
            "the tasks, for {:.3} s; CRIU took {:.3} s to freeze and seize them, {:.3} s to take \
             their memory, {:.3} s to write it",
            seconds(stats.frozen_time),
            seconds(stats.freezing_time),
            seconds(stats.memdump_time),
            seconds(stats.memwrite_time)
        ),
    });
    report.stats = Some(stats);
}
