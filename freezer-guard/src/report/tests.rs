//! Reports on images that a real CRIU has made, and on names that no process should have.

use std::path::Path;

use proptest::prelude::*;
use unicode_width::UnicodeWidthStr as _;

use super::{
    Conclusion, JournalLine, Kind, Report, Row, Sources, Style, journal_line, of_guard, of_image,
    table,
};
use crate::guard::{State, Status};

pub(super) fn sources(name: &str) -> Sources {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/criu/samples");
    let mut sources = Sources::read(&samples.join(name)).expect("an image");
    sources.dir = format!("/images/{name}");
    // That of the copy.
    sources.log_created = None;
    sources
}

fn report(name: &str) -> Report {
    of_image(sources(name))
}

/// A guard that has refused and was violated.
pub(super) fn guard() -> Status {
    let mut guard = sources("good-4.2")
        .record
        .guard()
        .cloned()
        .expect("a guard");
    let violated = sources("violated-4.1")
        .record
        .guard()
        .cloned()
        .expect("a guard");
    guard.violators = violated.violators;
    guard
}

fn kinds(report: &Report) -> Vec<Kind> {
    report.timeline.iter().map(|moment| moment.kind).collect()
}

/// No line is wider than 80 columns.
fn expect_narrow(text: &str) {
    for line in text.lines() {
        assert!(line.width() <= 80, "{line:?}");
    }
}

#[test]
fn a_good_image_is_told_from_begin_to_end() {
    let report = report("good-4.2");
    assert_eq!(report.verdict, Conclusion::Good);
    assert_eq!(report.unknown, Vec::<String>::new());
    let kinds = kinds(&report);
    assert_eq!(
        kinds[..5],
        [
            Kind::Begun,
            Kind::Frozen,
            Kind::Checkpointing,
            Kind::Started,
            Kind::Refused
        ]
    );
    assert_eq!(kinds[kinds.len() - 2..], [Kind::Exited, Kind::Ended]);
    let text = report.to_text();
    expect_narrow(&text);
    for line in [
        "checkpoint /images/good-4.2: good",
        "  made by     CRIU 4.2.1 on Linux 7.3.4+deb13-cloud-amd64",
        "  pages       236 written of 1800 scanned, 1540 are in the parent image",
        "  begin         2026-11-30T05:03:06.242Z",
        "      +0.574 s  the cgroup is FROZEN",
        "*     +0.717 s  refused: intruder (pid 248, uid 0) write to",
        "                /sys/fs/cgroup/app/cgroup.freeze, 3 times in all, until +0.950 s",
        "      +1.511 s  CRIU dumps pid 105: 77 pages of memory",
        "      +1.783 s  the guard ends",
        "  verdict       good: CRIU succeeded, and no process disturbed it",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no {line:?} in:\n{text}"
        );
    }
}

#[test]
fn a_violated_image_names_who_did_it() {
    let report = report("violated-4.1");
    assert_eq!(report.verdict, Conclusion::Violated);
    let violations = report.timeline.iter();
    let violations = violations.filter(|moment| moment.kind == Kind::Violation);
    let names: Vec<_> = violations
        .filter_map(|moment| moment.by.as_ref().map(|by| (&*by.comm, by.pid)))
        .collect();
    assert_eq!(names, [("sh", 136), ("sh", 136)]);
    let text = report.to_text();
    expect_narrow(&text);
    assert!(
        text.contains("!     +0.595 s  VIOLATED: sh (pid 136, uid 0) thawed"),
        "{text}"
    );
    assert!(text.contains("CRIU reports failure"), "{text}");
}

#[test]
fn what_older_evidence_lacks_is_named() {
    let report = report("pre-dump-3.17");
    assert_eq!(report.verdict, Conclusion::Good);
    let unknown = report.unknown.join("\n");
    for words in [
        "when the cgroup was FROZEN",
        "when CRIU started",
        "when CRIU ended",
    ] {
        assert!(unknown.contains(words), "{unknown}");
    }
    assert!(!kinds(&report).contains(&Kind::Started));
    assert!(
        report
            .to_text()
            .contains("CRIU writes the memory, while the tasks run")
    );
}

#[test]
fn a_log_that_is_lost_is_named() {
    let mut sources = sources("good-4.2");
    sources.stages = Err("no such file".to_owned());
    let report = of_image(sources);
    assert!(!kinds(&report).contains(&Kind::Criu));
    assert!(
        report.unknown[0].contains("no such file"),
        "{:?}",
        report.unknown
    );
}

#[test]
fn an_end_by_force_leaves_no_guard() {
    let mut sources = sources("violated-4.1");
    let text = r#"{"verdict":"violated","pid":7,"guard":null}"#;
    sources.record = serde_json::from_str(text).expect("evidence");
    let report = of_image(sources);
    assert!(
        report.meaning.contains("ended the guard"),
        "{}",
        report.meaning
    );
    expect_narrow(&report.to_text());
    parse(&report.to_svg());
}

/// The service knows of a guard what the image of another program does not have.
#[test]
fn a_guard_of_the_history_is_told_with_the_journal() {
    let lines = [
        r#"{"__REALTIME_TIMESTAMP":"1795064586300000","MESSAGE":"guarding x","KIND":"begun","HOLDER_PID":"42"}"#,
        r#"{"__REALTIME_TIMESTAMP":"1795064587329000","MESSAGE":"refused x","KIND":"freeze","INTRUDER_PID":"255"}"#,
        r#"{"__REALTIME_TIMESTAMP":"1795064587500000","MESSAGE":"refused y","KIND":"freeze","INTRUDER_PID":"9"}"#,
        r#"{"__REALTIME_TIMESTAMP":"1795064587600000","MESSAGE":[116,27,120],"KIND":"long"}"#,
        "no JSON",
    ];
    let lines: Vec<JournalLine> = lines.into_iter().filter_map(journal_line).collect();
    assert_eq!(lines.len(), 4);
    let report = of_guard(guard(), Some(&lines));
    let told: Vec<_> = report
        .timeline
        .iter()
        .filter(|moment| moment.kind == Kind::Journal)
        .map(|moment| &*moment.what)
        .collect();
    // The first refusal is in the guard's status as well.
    assert_eq!(told, ["the service: refused y", "the service: t\u{1b}x"]);
    let text = report.to_text();
    assert!(
        text.contains("  holder      pid 42") && text.contains("t\\u{1b}x"),
        "{text}"
    );
    let unknown = of_guard(guard(), None).unknown.join("\n");
    assert!(unknown.contains("the journal cannot be read"), "{unknown}");
}

#[test]
fn many_intruders_and_tasks_are_counted() {
    let mut guard = guard();
    let one = guard.intruders[0].clone();
    guard.intruders = (0..100)
        .map(|pid| crate::guard::Incident { pid, ..one.clone() })
        .collect();
    guard.denials.insert("freeze".to_owned(), 301);
    guard.denials.insert("kill".to_owned(), 0);
    let report = of_guard(guard, None);
    let refused = kinds(&report)
        .into_iter()
        .filter(|kind| *kind == Kind::Refused);
    assert_eq!(refused.count(), 32);
    let unknown = report.unknown.join("\n");
    assert!(
        unknown.contains("the times and names of 205 more refusals"),
        "{unknown}"
    );
}

#[test]
fn many_processes_are_told_in_one_line() {
    let mut sources = sources("good-4.2");
    let stages = sources.stages.as_mut().expect("a log");
    let dump = stages.steps[1].clone();
    stages.steps.splice(1..4, vec![dump; 512]);
    let text = of_image(sources).to_text();
    assert!(
        text.contains("CRIU dumps 500 more processes: 38500 pages of memory"),
        "{text}"
    );
    assert!(text.lines().count() < 60, "{text}");
}

fn parse(svg: &str) {
    if let Err(error) = roxmltree::Document::parse(svg) {
        panic!("{error}:\n{svg}");
    }
}

/// Nothing of a name drives a terminal or becomes a part of the page.
pub(super) fn expect_harmless(report: &Report) {
    let (text, svg, html) = (report.to_text(), report.to_svg(), report.to_html());
    for output in [&text, &svg, &html] {
        let is_dangerous = |character: char| {
            character.is_control() && character != '\n'
                || ('\u{202a}'..='\u{202e}').contains(&character)
        };
        assert!(!output.contains(is_dangerous), "{output:?}");
    }
    expect_narrow(&text);
    parse(&svg);
    for page in [&svg, &html] {
        assert!(!page.contains("<script"), "{page}");
    }
}

fn with_name(name: &str) -> [Report; 2] {
    let mut guard = guard();
    for incident in guard.intruders.iter_mut().chain(&mut guard.violators) {
        incident.comm = name.to_owned();
        incident.what = name.to_owned();
    }
    guard.cgroups = vec![name.into()];
    let mut image = sources("good-4.2");
    let record = &mut image.record;
    for field in [
        &mut record.comm,
        &mut record.criu,
        &mut record.kernel,
        &mut image.dir,
    ] {
        *field = name.to_owned();
    }
    let line = JournalLine {
        time: std::time::SystemTime::now(),
        message: name.to_owned(),
        kind: None,
        intruder_pid: None,
        holder_pid: None,
    };
    [of_guard(guard, Some(&[line])), of_image(image)]
}

#[test]
fn a_name_is_no_script() {
    let name = "<script>alert('x')</script>\u{1b}[2J\n]]>&\"\u{202e}\u{fffe}";
    for report in with_name(name) {
        expect_harmless(&report);
        assert!(report.to_html().contains("&lt;script&gt;"));
        assert!(report.to_svg().contains("&lt;script&gt;"));
    }
}

#[test]
fn a_page_loads_nothing() {
    let html = report("good-4.2").to_html();
    for word in ["src=", "href=", "url(", "@import"] {
        assert!(!html.contains(word), "{word}");
    }
    assert!(html.contains("default-src 'none'") && html.contains("prefers-color-scheme:dark"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_name_is_dangerous(name: String) {
        with_name(&name).iter().for_each(expect_harmless);
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal(name: String, width in 1..240_usize) {
        let mut guard = guard();
        guard.cgroups = vec![name.clone().into()];
        guard.intruders[0].comm = name.clone();
        let row = Row { guard: &guard, holder: name, has_ended: false, is_last_seen: false };
        for line in table(&[row.clone(), row], Some(width)) {
            // One wide character stays.
            prop_assert!(line.text.width() <= width.max(2), "{:?}", line.text);
            prop_assert!(!line.text.contains(char::is_control), "{:?}", line.text);
        }
    }
}

fn texts(width: Option<usize>) -> Vec<String> {
    let guard = guard();
    let row = Row {
        guard: &guard,
        holder: "213 criu +1".to_owned(),
        has_ended: false,
        is_last_seen: false,
    };
    let lines = table(&[row], width);
    lines.into_iter().map(|line| line.text).collect()
}

#[test]
fn a_wide_table_has_every_column_in_one_line() {
    let lines = texts(Some(120));
    assert_eq!(
        lines[..2],
        [
            "      GUARD  STATE          LEVEL    HELD  HOLDER       CGROUP              REFUSED  VIOLATIONS",
            "12515457258  CHECKPOINTING  enforce  1.8s  213 criu +1  /sys/fs/cgroup/app        7           0",
        ]
    );
    let last = "  2026-11-30T05:03:07.692Z refused sh (pid 102, uid 0) SIGTERM to pid 105";
    assert_eq!(lines[2..], [last]);
}

#[test]
fn a_narrow_table_gives_the_cgroup_a_line() {
    let lines = texts(Some(80));
    assert!(
        lines[1].ends_with("213 criu +1        7           0"),
        "{lines:#?}"
    );
    assert_eq!(lines[2], "  /sys/fs/cgroup/app");
    let narrow = texts(Some(60));
    assert!(!narrow[0].contains("LEVEL"), "{narrow:#?}");
    assert!(narrow[0].ends_with("VIOLATIONS"), "{narrow:#?}");
}

#[test]
fn a_table_says_what_has_ended_and_what_was_violated() {
    let mut guard = guard();
    guard.violations.insert("freeze".to_owned(), 2);
    guard.holder_pids.clear();
    guard.state = State::Checkpointing;
    guard.held_seconds = 3723.0;
    let row = Row {
        guard: &guard,
        holder: "-".to_owned(),
        has_ended: true,
        is_last_seen: true,
    };
    let lines = table(&[row], None);
    assert_eq!(lines[1].style, Style::Alarm);
    assert!(
        lines[1].text.contains("ENDED") && lines[1].text.contains("~1h02m"),
        "{lines:#?}"
    );
}
