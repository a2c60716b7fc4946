//! What a guard adds to a report.

use std::time::{Duration, SystemTime};

use super::{Conclusion, Fact, JournalLine, Kind, Lane, Moment, Report, Span, journal::Cut, names};
use crate::{
    guard::{Incident, Status, describe_level, total},
    words::{escaped, time_of},
};

/// How many intruders a report names, and how many violations.
const NAMED: usize = 32;
/// A time of `CLOCK_BOOTTIME` and one of the wall clock that are the same may be as far apart once
/// both are texts.
const JITTER: Duration = Duration::from_millis(10);

/// The report on a guard that the service remembers. `journal`: what the service has logged about
/// it, if it can be read.
pub fn of_guard(guard: Status, journal: Option<&[JournalLine]>) -> Report {
    let cut = journal.and_then(|lines| lines.iter().find_map(|line| line.cut(&guard)));
    let (verdict, meaning) = conclusion(&guard, cut);
    let mut report = Report {
        about: format!("guard {} of {}", guard.id, names(&guard)),
        verdict,
        meaning,
        facts: facts(&guard),
        timeline: Vec::new(),
        spans: Vec::new(),
        stats: None,
        guard: None,
        unknown: Vec::new(),
    };
    add_guard(&mut report, &guard);
    if let Some(life) = Life::of(&guard) {
        let Life {
            begun,
            frozen,
            checkpointing,
            ended,
        } = life;
        expect_order(
            &mut report,
            &[Some(begun), frozen, checkpointing, Some(ended)],
        );
    }
    if guard.frozen.is_none() && !guard.automatic {
        report
            .unknown
            .push("when the cgroup was FROZEN: only the evidence in an image has that".to_owned());
    }
    if matches!(verdict, Conclusion::Undisturbed | Conclusion::Unfinished) {
        report.unknown.push(
            "whether a process ended the guard by force: the service does not record that"
                .to_owned(),
        );
    }
    report.unknown.push(
        "what CRIU did, and whether it succeeded: the service does not know; see CRIU's log"
            .to_owned(),
    );
    match journal {
        Some(lines) => add_journal(&mut report, &guard, lines),
        None => report
            .unknown
            .push("what the service has logged: the journal cannot be read".to_owned()),
    }
    report.sort();
    report.guard = Some(guard);
    report
}

/// The verdict, and what it means. `cut`: what ended the guard before its holder had ended.
fn conclusion(guard: &Status, cut: Option<Cut>) -> (Conclusion, String) {
    const DISTURBED: &str =
        "a process disturbed the checkpoint while it was CHECKPOINTING: do not trust it";
    let has_begun = guard.checkpointing.is_some();
    match (guard.violation_count(), cut) {
        (0, Some(cut)) => (
            cut.conclusion(),
            format!("{}: do not trust the checkpoint", cut.words()),
        ),
        (0, None) if has_begun => (
            Conclusion::Undisturbed,
            "no violation was counted".to_owned(),
        ),
        (0, None) => (
            Conclusion::Unfinished,
            "the guard ended before it was CHECKPOINTING".to_owned(),
        ),
        (_, Some(cut)) => (
            Conclusion::Violated,
            format!("{DISTURBED}; in the end {}", cut.words()),
        ),
        (_, None) => (Conclusion::Violated, DISTURBED.to_owned()),
    }
}

/// The facts that a guard tells.
pub(super) fn facts(guard: &Status) -> Vec<Fact> {
    let refused = total(&guard.denials);
    let mut facts = vec![
        Fact {
            name: "cgroup",
            value: names(guard),
        },
        Fact {
            name: "guard",
            value: format!(
                "{}, held for {:.3} s ({})",
                guard.id,
                guard.held_seconds,
                describe_level(guard)
            ),
        },
        Fact {
            name: "refused",
            value: refused.to_string(),
        },
        Fact {
            name: "violations",
            value: guard.violation_count().to_string(),
        },
    ];
    if !guard.allowed.is_empty() {
        facts.push(Fact {
            name: "allowed",
            value: guard.allowed.join(", "),
        });
    }
    facts
}

/// Adds the life of a guard, and what was done to it.
pub(super) fn add_guard(report: &mut Report, guard: &Status) {
    let Some(life) = Life::of(guard) else {
        let wrong = format!("when the guard began: {:?} is no time", guard.begun);
        report.unknown.push(escaped(&wrong).into_owned());
        return;
    };
    let names = names(guard);
    let Life { begun, ended, .. } = life;
    let frozen = in_order(begun, life.frozen);
    let checkpointing = in_order(frozen.unwrap_or(begun), life.checkpointing);
    let mut add = |time, kind, what: String| report.timeline.push(Moment::new(time, kind, what));
    add(begun, Kind::Begun, format!("the guard of {names} begins"));
    if let Some(frozen) = frozen {
        add(frozen, Kind::Frozen, "the cgroup is FROZEN".to_owned());
    }
    match checkpointing {
        Some(time) => {
            let what = "CHECKPOINTING: from here on a disturbance is a violation";
            add(time, Kind::Checkpointing, what.to_owned());
        }
        None => report
            .unknown
            .push("CHECKPOINTING: the guard ended before it got there".to_owned()),
    }
    let end = Moment::new(ended, Kind::Ended, "the guard ends");
    report.timeline.push(end);
    let middle = checkpointing.unwrap_or(ended);
    for (name, from, to) in [
        ("PREPARING", begun, middle),
        ("CHECKPOINTING", middle, ended),
    ] {
        let lane = Lane::Guard;
        if from < to {
            report.spans.push(Span {
                lane,
                name,
                from,
                to,
            });
        }
    }
    add_incidents(report, guard);
}

/// The times of a guard, as its status has them.
pub(super) struct Life {
    pub(super) begun: SystemTime,
    pub(super) frozen: Option<SystemTime>,
    pub(super) checkpointing: Option<SystemTime>,
    pub(super) ended: SystemTime,
}

impl Life {
    /// `None`: it is not known when the guard began.
    pub(super) fn of(guard: &Status) -> Option<Self> {
        let begun = time_of(&guard.begun)?;
        let held = Duration::try_from_secs_f64(guard.held_seconds).unwrap_or_default();
        Some(Self {
            begun,
            frozen: guard.frozen.as_deref().and_then(time_of),
            checkpointing: guard.checkpointing.as_deref().and_then(time_of),
            ended: begun.checked_add(held).unwrap_or(begun),
        })
    }
}

/// Says so if times that follow one another contradict their order.
pub(super) fn expect_order(report: &mut Report, times: &[Option<SystemTime>]) {
    let times: Vec<_> = times.iter().flatten().collect();
    let is_wrong = times.windows(2).any(|pair| {
        let back = pair[0].duration_since(*pair[1]);
        back.is_ok_and(|back| back > JITTER)
    });
    if is_wrong {
        report.unknown.push(
            "the true times: those of the sources contradict one another, as they do after the \
             host's clock was set"
                .to_owned(),
        );
    }
}

/// A time that is not before the one that it follows: see [`JITTER`].
pub(super) fn in_order(earlier: SystemTime, time: Option<SystemTime>) -> Option<SystemTime> {
    let time = time?;
    match earlier.duration_since(time) {
        Ok(back) if back <= JITTER => Some(earlier),
        _ => Some(time),
    }
}

fn add_incidents(report: &mut Report, guard: &Status) {
    let refused: Vec<_> = guard.intruders.iter().collect();
    let (violations, repaired): (Vec<_>, Vec<_>) = guard
        .violators
        .iter()
        .partition(|incident| incident.checkpointing);
    for (kind, incidents, count, word) in [
        (
            Kind::Violation,
            violations,
            total(&guard.violations),
            "violation",
        ),
        (
            Kind::Disturbance,
            repaired,
            total(&guard.repaired),
            "disturbance",
        ),
        (Kind::Refused, refused, total(&guard.denials), "refusal"),
    ] {
        let mut named = 0_u64;
        for incident in incidents.into_iter().take(NAMED) {
            named = named.saturating_add(incident.count);
            report.timeline.extend(of_incident(kind, incident));
        }
        if let left @ 1.. = count.saturating_sub(named) {
            let plural = if left == 1 { "" } else { "s" };
            let what = format!("the times and names of {left} more {word}{plural}");
            report.unknown.push(what);
        }
    }
    if guard.unproven {
        report.unknown.push(
            "what happened while the kernel did not call the BPF programs: a process had \
             switched function tracing off, or had detached some"
                .to_owned(),
        );
    }
    if let missed @ 1.. = guard.missed {
        report.unknown.push(format!(
            "{missed} calls that the BPF programs may have missed, since this kernel preempts them"
        ));
    }
}

fn of_incident(kind: Kind, incident: &Incident) -> Option<Moment> {
    let what = match kind {
        Kind::Violation => format!("VIOLATED: {incident}"),
        Kind::Disturbance => format!("before CHECKPOINTING, and repaired: {incident}"),
        _ => format!("refused: {incident}"),
    };
    let until = (incident.count > 1).then(|| time_of(&incident.last));
    Some(Moment {
        until: until.flatten(),
        by: Some(incident.clone()),
        ..Moment::new(time_of(&incident.first)?, kind, what)
    })
}

/// Adds what the guard itself does not tell.
fn add_journal(report: &mut Report, guard: &Status, lines: &[JournalLine]) {
    let incidents = || guard.intruders.iter().chain(&guard.violators);
    // A service that has been restarted logs the begin again.
    if let Some(pid) = lines.iter().find_map(|line| line.holder_pid) {
        report.facts.push(Fact {
            name: "holder",
            value: format!("pid {pid}"),
        });
    }
    for line in lines {
        let is_named = incidents().any(|incident| {
            line.intruder_pid == Some(incident.pid)
                && line.kind.as_deref() == Some(&*incident.protection)
        });
        if !is_named && !line.is_of_life() {
            let by = match line.ends_by_force(guard) {
                true => "`freezer-guard end`",
                false => "the service",
            };
            let what = format!("{by}: {}", line.message);
            let moment = Moment::new(line.time, Kind::Journal, what);
            report.timeline.push(moment);
        }
    }
    if lines.is_empty() {
        let why = "what the service has logged: the journal has no line about this guard, or not \
                   for you";
        report.unknown.push(why.to_owned());
    }
}
