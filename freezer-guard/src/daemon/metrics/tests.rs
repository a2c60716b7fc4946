//! The metrics as a monitoring system gets them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use freezer_guard::guard::{Counts, Status, Tally};
use freezer_guard_abi::{GuardId, Level};

use super::{Metrics, REASONS, Thaw};

#[test]
fn metrics_are_there_before_anything_happens() {
    let mut metrics = Metrics::default();
    metrics.has_begun();
    metrics.was_unguarded("busy");
    metrics.has_lost(7);
    let tally = Tally {
        levels: [Some(Level::Enforce), Some(Level::Detect), None, None],
        recursion_misses: 3,
        ..Tally::default()
    };
    let text = metrics.page(&tally, |_| false).prometheus;
    for line in [
        "freezer_guard_guards_active 0",
        "freezer_guard_guards_begun_total 1",
        "freezer_guard_unguarded_dumps_total{reason=\"busy\"} 1",
        "freezer_guard_unguarded_dumps_total{reason=\"untrusted\"} 0",
        "freezer_guard_lost_events_total 7",
        "freezer_guard_thawed_total{reason=\"killed\"} 0",
        "freezer_guard_thawed_total{reason=\"timeout\"} 0",
        "freezer_guard_thawed_total{reason=\"longest_hold\"} 0",
        "freezer_guard_level{kind=\"freeze\"} 3",
        "freezer_guard_level{kind=\"kill\"} 1",
        "freezer_guard_level{kind=\"migrate\"} 0",
        "freezer_guard_violations_total{kind=\"missed\"} 0",
        "freezer_guard_violations_total{kind=\"unproven\"} 0",
        "freezer_guard_arm_seconds_count 0",
        "# TYPE freezer_guard_build_info gauge",
        "freezer_guard_long_dumps_total 0",
        "freezer_guard_recursion_misses 3",
        "freezer_guard_hold_seconds_count 0",
        "# TYPE freezer_guard_denied_total counter",
        "# HELP freezer_guard_guards_begun_total Guards that have begun.",
        "freezer_guard_denied_total{kind=\"kill\"} 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no {line:?} in {text}"
        );
    }
}

/// The lines with the counts of denials and violations.
fn counts(metrics: &Metrics, tally: &Tally, has_ended: bool) -> BTreeSet<String> {
    let text = metrics.page(tally, |_: GuardId| has_ended).prometheus;
    let is_count = |line: &&str| {
        line.starts_with("freezer_guard_denied") || line.starts_with("freezer_guard_violations")
    };
    text.lines().filter(is_count).map(str::to_owned).collect()
}

/// A guard that ends is counted once at any time: no counter goes back, which would be a restart of
/// the service for Prometheus.
#[test]
fn a_guard_that_ends_changes_no_count() {
    let status: Status = serde_json::from_str(
        r#"{
            "id": 7, "state": "ENDED", "automatic": true, "cgroups": [], "holder_pids": [], "begun": "",
            "checkpointing": null, "held_seconds": 1.5, "level": "", "levels": {}, "allowed": [],
            "denials": {"freeze": 2}, "violations": {"kill": 1}, "repaired": {}, "missed": 3,
            "unproven": true, "froze": false, "intruders": [], "violators": []
        }"#,
    )
    .expect("it is a status");
    let guard = |is_in_force| {
        let counts = Counts {
            is_in_force,
            denials: status.denials.clone(),
            violations: status.violations.clone(),
            missed: status.missed,
            unproven: status.unproven,
        };
        Tally {
            guards: BTreeMap::from([(status.id, counts)]),
            ..Tally::default()
        }
    };
    let mut metrics = Metrics::default();
    let held = counts(&metrics, &guard(true), false);
    for line in [
        "freezer_guard_denied_total{kind=\"freeze\"} 2",
        "freezer_guard_violations_total{kind=\"kill\"} 1",
        "freezer_guard_violations_total{kind=\"missed\"} 3",
        "freezer_guard_violations_total{kind=\"unproven\"} 1",
    ] {
        assert!(
            held.iter().any(|found| found == line),
            "no {line:?}: {held:?}"
        );
    }
    assert_eq!(
        counts(&metrics, &guard(false), false),
        held,
        "ended, and not counted"
    );
    metrics.has_ended(&status);
    assert_eq!(
        counts(&metrics, &guard(false), true),
        held,
        "counted, and not thawed"
    );
    assert_eq!(
        counts(&metrics, &Tally::default(), false),
        held,
        "forgotten"
    );
}

#[test]
fn both_formats_have_the_same_samples() {
    let mut metrics = Metrics::default();
    metrics.is_armed(Duration::ZERO);
    metrics.has_thawed(2, Thaw::Timeout);
    metrics.has_thawed(3, Thaw::LongestHold);
    metrics.held.observe(1.0);
    let page = metrics.page(&Tally::default(), |_| false);
    let samples = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // OpenMetrics has a point in each limit of a histogram.
        lines
            .map(|line| line.replace(".0\"}", "\"}"))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(samples(&page.open_metrics), samples(&page.prometheus));
    assert!(page.open_metrics.ends_with("\n# EOF\n"));
    assert!(!page.prometheus.contains("# EOF"));
    for line in [
        "# TYPE freezer_guard_build info",
        "# TYPE freezer_guard_thawed counter",
        "freezer_guard_thawed_total{reason=\"timeout\"} 2",
        "freezer_guard_thawed_total{reason=\"longest_hold\"} 3",
        "freezer_guard_arm_seconds_bucket{le=\"0.0\"} 1",
    ] {
        let mut lines = page.open_metrics.lines();
        assert!(
            lines.any(|found| found == line),
            "no {line:?} in {}",
            page.open_metrics
        );
    }
}

/// A label is no place for the names of cgroups, which users choose.
#[test]
fn labels_have_values_of_ours_only() {
    let text = super::description();
    let labels = text.lines().filter(|line| !line.starts_with('#'));
    let labels = labels.filter_map(|line| line.split_once('{')?.1.split_once('='));
    let names: BTreeSet<_> = labels.map(|(name, _)| name).collect();
    assert_eq!(names, BTreeSet::from(["kind", "le", "reason", "version"]));
}

/// The names of our metrics in a text. A name ends where a letter of another kind follows.
fn names(text: &str) -> BTreeSet<&str> {
    let begins = text.match_indices("freezer_guard_");
    let names = begins.map(|(begin, _)| {
        let rest = &text[begin..];
        let is_end = |c: char| !c.is_ascii_lowercase() && c != '_';
        &rest[..rest.find(is_end).unwrap_or(rest.len())]
    });
    names.collect()
}

/// Prometheus is silent about a rule on a metric that nobody exports.
#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let metrics = Metrics::default();
    metrics.held.observe(1.0);
    metrics.armed.observe(1.0);
    let text = metrics.page(&Tally::default(), |_| false).prometheus;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let exported: BTreeSet<_> = lines.flat_map(names).collect();
    let rules = include_str!("../../../../packaging/prometheus/freezer-guard.rules.yml");
    let tests = include_str!("../../../../packaging/prometheus/freezer-guard.rules.test.yml");
    let dashboard = include_str!("../../../../packaging/grafana/freezer-guard.json");
    for used in [rules, tests, dashboard].map(names) {
        assert!(used.len() > 4, "{used:?}");
        let missing: Vec<_> = used.difference(&exported).collect();
        assert!(missing.is_empty(), "nobody exports {missing:?}");
    }
    // The dashboard shows all of them.
    let hidden: Vec<_> = exported.difference(&names(dashboard)).copied().collect();
    assert!(hidden.is_empty(), "the dashboard lacks {hidden:?}");
}

/// The texts for people say what each reason means.
#[test]
fn rules_and_dashboard_explain_each_reason() {
    for text in [
        include_str!("../../../../packaging/prometheus/freezer-guard.rules.yml"),
        include_str!("../../../../packaging/grafana/freezer-guard.json"),
    ] {
        for reason in REASONS {
            assert!(text.contains(&format!("{reason}: ")), "{reason}");
        }
    }
}

#[test]
fn the_documentation_explains_each_reason() {
    let chapter = include_str!("../../../../docs/reference/metrics.md");
    for reason in REASONS.iter().chain(&Thaw::NAMES) {
        assert!(chapter.contains(&format!("\n| `{reason}` | ")), "{reason}");
    }
}
