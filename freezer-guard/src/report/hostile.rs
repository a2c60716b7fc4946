//! Reports on images whose files hold any numbers, and on guards that ended early.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Conclusion, Kind, Report, of_guard, of_image, tests::*};
use crate::{criu::Record, json::VERSION};

/// Evidence of a real image.
fn evidence() -> Value {
    let text = include_str!("../criu/samples/good-4.2/freezer-guard.json");
    serde_json::from_str(text).expect("JSON")
}

fn record(evidence: Value) -> Record {
    serde_json::from_value(evidence).expect("evidence")
}

/// The report on an image with this evidence and this log.
fn report_of(evidence: Value, log: Option<&str>) -> Report {
    let mut sources = sources("good-4.2");
    sources.record = record(evidence);
    if let Some(log) = log {
        let temp = tempfile::tempdir().expect("a folder");
        let path = temp.path().join("dump.log");
        std::fs::write(&path, log).expect("a log");
        sources.stages = crate::criu::Stages::read(&path).map_err(|error| error.to_string());
    }
    of_image(sources)
}

/// Every form of it can be made.
fn expect_forms(report: &Report) {
    expect_harmless(report);
    serde_json::to_string(report).expect("JSON");
}

#[test]
fn a_late_line_of_a_log_is_no_panic() {
    for line in [
        "(18446744073709551615.000000) Dumping finished successfully\n",
        "(300000000000.000) Dumping finished successfully\n",
        "(31535999.000000) Dumping finished successfully\n",
    ] {
        let mut evidence = evidence();
        evidence["log_begun"] = json!("9999-12-31T23:59:59.000Z");
        expect_forms(&report_of(evidence, Some(line)));
    }
}

#[test]
fn a_guard_of_thousands_of_years_is_no_panic() {
    let mut evidence = evidence();
    evidence["guard"]["held_seconds"] = json!(1e12);
    expect_forms(&report_of(evidence.clone(), None));
    evidence["guard"]["held_seconds"] = json!(1e300);
    expect_forms(&report_of(evidence, None));
}

#[test]
fn large_counts_are_no_panic() {
    let mut evidence = evidence();
    for counts in ["denials", "violations", "repaired"] {
        evidence["guard"][counts] = json!({"freeze": u64::MAX, "kill": u64::MAX});
    }
    evidence["guard"]["missed"] = json!(u64::MAX);
    for incident in evidence["guard"]["intruders"].as_array_mut().expect("some") {
        incident["count"] = json!(u64::MAX);
    }
    let task = "(00.000002) Dumping task (pid: 7 comm: sh)\n\
                (00.000003) Pagemap generated: 18446744073709551615 pages (0 lazy) 0 holes\n";
    expect_forms(&report_of(evidence, Some(&task.repeat(20))));
}

/// Lines of CRIU's log with any number where CRIU writes one.
fn line() -> impl Strategy<Value = String> {
    let texts = prop_oneof![
        any::<u64>().prop_map(|pid| format!("Dumping task (pid: {pid} comm: x)")),
        any::<u64>().prop_map(|pages| format!("Pagemap generated: {pages} pages (0 lazy) 0 holes")),
        "Error \\(x\\): .{0,200}",
        Just("Seized task 7".to_owned()),
        Just("Running post-dump scripts".to_owned()),
        Just("Dumping finished successfully".to_owned()),
        any::<String>(),
    ];
    let seconds = prop_oneof![any::<u64>(), 0..40_000_000_u64, 0..100_u64];
    (seconds, 0..1_000_000_u32, texts)
        .prop_map(|(seconds, micros, text)| format!("({seconds:02}.{micros:06}) {text}\n"))
}

/// A time as evidence has one, of any year, or none.
fn time() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0..260_000_000_000_u64).prop_map(|seconds| {
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            json!(crate::words::timestamp(time))
        }),
        any::<String>().prop_map(|text| json!(text)),
        Just(Value::Null),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_number_is_too_much(
        log in prop::collection::vec(line(), 0..40),
        times in prop::collection::vec(time(), 7),
        counts in prop::collection::vec(any::<u64>(), 8),
        held in any::<f64>().prop_filter("JSON has it", |held| held.is_finite()),
        verdict in prop_oneof![Just(json!("good")), Just(json!("violated")), Just(Value::Null)],
    ) {
        let mut evidence = evidence();
        evidence["verdict"] = verdict;
        evidence["memory_bytes"] = json!(counts[0]);
        evidence["image_bytes"] = json!(counts[1]);
        for (name, time) in ["started", "log_begun", "ended"].into_iter().zip(&times) {
            evidence[name] = time.clone();
        }
        let guard = &mut evidence["guard"];
        for (name, time) in ["frozen", "checkpointing"].into_iter().zip(&times[3..]) {
            guard[name] = time.clone();
        }
        if times[5].is_string() {
            guard["begun"] = times[5].clone();
        }
        guard["held_seconds"] = json!(held);
        guard["denials"] = json!({"freeze": counts[2], "kill": counts[3]});
        guard["violations"] = json!({"freeze": counts[4], "kill": counts[5]});
        guard["missed"] = json!(counts[6]);
        for incident in guard["intruders"].as_array_mut().into_iter().flatten() {
            incident["count"] = json!(counts[7]);
            if times[6].is_string() {
                incident["last"] = times[6].clone();
            }
        }
        let report = report_of(evidence, Some(&log.concat()));
        expect_forms(&report);
        if let Some(guard) = report.guard {
            expect_forms(&of_guard(guard, Some(&[])));
        }
    }
}

#[test]
fn times_that_contradict_one_another_are_named() {
    let unknown = |evidence| report_of(evidence, None).unknown.join("\n");
    let words = "contradict one another";
    assert!(!unknown(evidence()).contains(words));
    for (name, time) in [
        ("ended", "2026-11-30T04:03:08.012Z"),
        ("started", "2026-11-30T06:03:06.819Z"),
        ("log_begun", "2026-11-30T05:03:09.000Z"),
    ] {
        let mut evidence = evidence();
        evidence[name] = json!(time);
        assert!(unknown(evidence).contains(words), "{name}");
    }
    let mut guard = guard();
    guard.checkpointing = Some("2026-11-30T04:00:00.000Z".to_owned());
    let unknown = of_guard(guard, None).unknown.join("\n");
    assert!(unknown.contains(words), "{unknown}");
}

#[test]
fn a_later_format_is_named() {
    let mut evidence = evidence();
    evidence["version"] = json!(VERSION);
    let report = report_of(evidence.clone(), None);
    assert_eq!(report.unknown, Vec::<String>::new());
    evidence["version"] = json!(VERSION + 1);
    let unknown = report_of(evidence, None).unknown.join("\n");
    let words = format!("its format has version {}", VERSION + 1);
    assert!(unknown.contains(&words), "{unknown}");
}

/// A copy of an interrupted image has a log of another time.
#[test]
fn the_time_of_a_file_is_named_as_the_source() {
    let mut sources = sources("good-4.2");
    let draft = json!({"verdict": null, "pid": 7});
    sources.record = record(draft);
    sources.log_created = Some(std::time::SystemTime::now());
    let report = of_image(sources);
    assert!(report.timeline.iter().any(|one| one.kind == Kind::Criu));
    let unknown = report.unknown.join("\n");
    assert!(unknown.contains("the creation of dump.log"), "{unknown}");
}

fn lines(lines: &[&str]) -> Vec<super::JournalLine> {
    let lines = lines.iter().filter_map(|line| super::journal_line(line));
    lines.collect()
}

/// A guard without a violation that the service remembers.
fn undisturbed() -> crate::guard::Status {
    let record = record(evidence());
    record.guard().cloned().expect("a guard")
}

#[test]
fn a_guard_without_a_violation_is_not_called_good() {
    let report = of_guard(undisturbed(), Some(&[]));
    assert_eq!(report.verdict, Conclusion::Undisturbed);
    assert_eq!(report.meaning, "no violation was counted");
    let unknown = report.unknown.join("\n");
    assert!(
        unknown.contains("whether a process ended the guard by force"),
        "{unknown}"
    );
    let (svg, html) = (report.to_svg(), report.to_html());
    assert!(
        svg.contains("<tspan class=\"fg-text\">undisturbed"),
        "{svg}"
    );
    assert!(html.contains("<span class=\"\">undisturbed"), "{html}");
}

#[test]
fn a_guard_that_never_was_checkpointing_is_unfinished() {
    let mut guard = undisturbed();
    guard.checkpointing = None;
    let report = of_guard(guard, Some(&[]));
    assert_eq!(report.verdict, Conclusion::Unfinished);
}

#[test]
fn an_early_end_in_the_journal_is_told() {
    let time = r#""__REALTIME_TIMESTAMP":"1795064587329000""#;
    let by_force = format!(
        r#"{{{time},"MESSAGE":"guard of /sys/fs/cgroup/app ended by force, by uid 0; held for 1.8 s, refused nothing"}}"#
    );
    let of_another = by_force.replace("/app ended", "/app/other ended");
    let too_long = format!(
        r#"{{{time},"MESSAGE":"ending the guard of x: a user has held it for longer than `users.longest_hold`"}}"#
    );
    let timed_out = format!(
        r#"{{{time},"KIND":"long","MESSAGE":"killed the checkpointer [7]: its dump took longer than `automatic.timeout`"}}"#
    );
    for (line, verdict, words) in [
        (&by_force, Conclusion::Violated, "ended the guard by force"),
        (&too_long, Conclusion::Violated, "`users.longest_hold`"),
        (&timed_out, Conclusion::Failed, "`automatic.timeout`"),
        (&of_another, Conclusion::Undisturbed, "no violation"),
    ] {
        let report = of_guard(undisturbed(), Some(&lines(&[line])));
        assert_eq!(report.verdict, verdict, "{line}");
        assert!(report.meaning.contains(words), "{}", report.meaning);
        expect_forms(&report);
    }
    let mut guard = undisturbed();
    guard.missed = 1;
    let report = of_guard(guard, Some(&lines(&[&timed_out])));
    assert_eq!(report.verdict, Conclusion::Violated);
    assert!(report.meaning.contains("killed the checkpointer"));
}

#[test]
fn the_holder_is_told_once() {
    let line = r#"{"__REALTIME_TIMESTAMP":"1795064586300000","MESSAGE":"guarding x","KIND":"begun","HOLDER_PID":"42"}"#;
    let report = of_guard(undisturbed(), Some(&lines(&[line, line])));
    let holders = report.facts.iter().filter(|fact| fact.name == "holder");
    assert_eq!(holders.count(), 1);
}

#[test]
fn a_long_word_takes_no_long_time() {
    let mut evidence = evidence();
    evidence["comm"] = json!("x".repeat(2 << 20));
    let begun = std::time::Instant::now();
    report_of(evidence, None).to_text();
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
}
