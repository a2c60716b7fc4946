//! Counters of the service since its start, for a monitoring system.
//!
//! The help texts are the documentation: docs/reference/metrics.md has them.

use std::collections::BTreeMap;

use freezer_guard::guard::Status;
use freezer_guard_abi::Protection;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// The reasons why a dump has no automatic guard.
const REASONS: [&str; 4] = ["busy", "full", "untrusted", "failed"];

type Counts = BTreeMap<String, u64>;

fn add(counts: &mut Counts, more: &Counts) {
    for (kind, count) in more {
        *counts.entry(kind.clone()).or_default() += count;
    }
}

/// Counts since the service was started.
pub(super) struct Metrics {
    begun: u64,
    unguarded: Counts,
    lost: u64,
    thawed: u64,
    long: u64,
    denied: Counts,
    violations: Counts,
    held: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            begun: 0,
            unguarded: Counts::new(),
            lost: 0,
            thawed: 0,
            long: 0,
            denied: Counts::new(),
            violations: Counts::new(),
            // From a pre-dump of a small process to one of many GiB, in seconds.
            held: Histogram::new([0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]),
        }
    }
}

impl Metrics {
    pub(super) fn has_begun(&mut self) {
        self.begun += 1;
    }

    /// `reason`: why it had no guard.
    pub(super) fn was_unguarded(&mut self, reason: &str) {
        *self.unguarded.entry(reason.to_owned()).or_default() += 1;
    }

    pub(super) fn has_lost(&mut self, events: u64) {
        self.lost += events;
    }

    pub(super) fn has_thawed(&mut self, cgroups: usize) {
        self.thawed += cgroups as u64;
    }

    pub(super) fn is_long(&mut self) {
        self.long += 1;
    }

    pub(super) fn has_ended(&mut self, guard: &Status) {
        add(&mut self.denied, &guard.denials);
        add(&mut self.violations, &guard.violations);
        self.held.observe(guard.held_seconds);
    }

    /// The name, the meaning and the value of each plain counter.
    fn counters(&self) -> [(&'static str, &'static str, u64); 4] {
        [
            ("guards_begun", "Guards that have begun", self.begun),
            (
                "lost_events",
                "Events that the service has lost, because they came too fast. The other metrics are complete",
                self.lost,
            ),
            (
                "thawed",
                "Cgroups that a killed checkpointer had left frozen, and that the service has thawed",
                self.thawed,
            ),
            (
                "long_dumps",
                "Dumps under an automatic guard that took longer than automatic.warn_after",
                self.long,
            ),
        ]
    }

    fn unguarded(&self) -> Family<Reason, Counter> {
        let family = Family::<Reason, Counter>::default();
        for reason in REASONS {
            let count = self.unguarded.get(reason).copied().unwrap_or_default();
            let reason = reason.to_owned();
            family.get_or_create(&Reason { reason }).inc_by(count);
        }
        family
    }

    /// In Prometheus's text format. `held`: the guards in force.
    pub(super) fn text(&self, held: &[Status], recursion_misses: u64) -> String {
        let mut registry = Registry::with_prefix("freezer_guard");
        let by_kind = |ended: &Counts, of: fn(&Status) -> &Counts| {
            let mut all: Counts = Protection::ALL
                .into_iter()
                .map(|protection| (protection.name().to_owned(), 0))
                .collect();
            add(&mut all, ended);
            held.iter().for_each(|guard| add(&mut all, of(guard)));
            let family = Family::<Kind, Counter>::default();
            for (kind, count) in all {
                family.get_or_create(&Kind { kind }).inc_by(count);
            }
            family
        };
        for (name, help, count) in self.counters() {
            registry.register(name, help, counter(count));
        }
        registry.register("guards_active", "Guards in force", gauge(held.len() as u64));
        registry.register(
            "denied",
            "Attempts that guards have refused, by protection",
            by_kind(&self.denied, |guard| &guard.denials),
        );
        registry.register(
            "violations",
            "Violations, by protection. Alert on any increase: a checkpoint cannot be trusted",
            by_kind(&self.violations, |guard| &guard.violations),
        );
        registry.register(
            "unguarded_dumps",
            "Checkpoints without a guard, or with a guard that only detects (failed), by reason. Alert on any increase",
            self.unguarded(),
        );
        registry.register(
            "hold_seconds",
            "The time for which guards were held, in seconds",
            self.held.clone(),
        );
        registry.register(
            "recursion_misses",
            "Runs of BPF programs that a preemptible kernel has left out since their load",
            gauge(recursion_misses),
        );
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        of_the_old_format(&text)
    }
}

/// Returns the metrics of a service that has just started: with all their names, types and help
/// texts.
pub(crate) fn description() -> String {
    Metrics::default().text(&[], 0)
}

fn counter(count: u64) -> Counter {
    let counter = Counter::<u64>::default();
    counter.inc_by(count);
    counter
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::<i64>::default();
    gauge.set(value as i64);
    gauge
}

/// The textfile collector reads the format of before OpenMetrics: there a counter
/// has the same name in what describes it.
fn of_the_old_format(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for index in 0..lines.len() {
        if let Some(name) = lines[index]
            .strip_prefix("# TYPE ")
            .and_then(|line| line.strip_suffix(" counter"))
        {
            let name = name.to_owned();
            lines[index] = format!("# TYPE {name}_total counter");
            if let Some(help) = index.checked_sub(1) {
                lines[help] = lines[help].replace(&name, &format!("{name}_total"));
            }
        }
    }
    lines.retain(|line| line != "# EOF");
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Metrics, REASONS};

    #[test]
    fn metrics_are_there_before_anything_happens() {
        let mut metrics = Metrics::default();
        metrics.has_begun();
        metrics.was_unguarded("busy");
        metrics.has_lost(7);
        let text = metrics.text(&[], 3);
        for line in [
            "freezer_guard_guards_active 0",
            "freezer_guard_guards_begun_total 1",
            "freezer_guard_unguarded_dumps_total{reason=\"busy\"} 1",
            "freezer_guard_unguarded_dumps_total{reason=\"untrusted\"} 0",
            "freezer_guard_lost_events_total 7",
            "freezer_guard_thawed_total 0",
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
        let text = metrics.text(&[], 0);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let exported: BTreeSet<_> = lines.flat_map(names).collect();
        let rules = include_str!("../../../packaging/prometheus/freezer-guard.rules.yml");
        let tests = include_str!("../../../packaging/prometheus/freezer-guard.rules.test.yml");
        let dashboard = include_str!("../../../packaging/grafana/freezer-guard.json");
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
            include_str!("../../../packaging/prometheus/freezer-guard.rules.yml"),
            include_str!("../../../packaging/grafana/freezer-guard.json"),
        ] {
            for reason in REASONS {
                assert!(text.contains(&format!("{reason}: ")), "{reason}");
            }
        }
    }
}
