//! Counters of the service since its start, for a monitoring system.
//!
//! The help texts are the documentation: docs/reference/metrics.md has them.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use freezer_guard::guard::{Counts as GuardCounts, Status, Tally};
use freezer_guard_abi::{GuardId, Protection};
use nix::sys::utsname::uname;
use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
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

/// What runs here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: String,
    object: String,
    kernel: String,
}

impl Build {
    fn here() -> Self {
        let kernel = uname().map(|system| system.release().to_string_lossy().into_owned());
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            object: env!("FREEZER_GUARD_OBJECT_ID").to_owned(),
            kernel: kernel.unwrap_or_default(),
        }
    }
}

/// The reasons why a dump has no automatic guard.
const REASONS: [&str; 4] = ["busy", "full", "untrusted", "failed"];

/// The reason why the service thaws a cgroup that was frozen for a guard.
#[derive(Debug, Clone, Copy)]
pub(super) enum Thaw {
    /// The checkpointer has ended without a thaw, or another process has killed it.
    Killed,
    /// The service has ended the checkpointer or its guard: `automatic.timeout`.
    Timeout,
    /// The service has ended the guard of a user: `users.longest_hold`.
    LongestHold,
}

impl Thaw {
    const NAMES: [&str; 3] = [
        Self::Killed.name(),
        Self::Timeout.name(),
        Self::LongestHold.name(),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Timeout => "timeout",
            Self::LongestHold => "longest_hold",
        }
    }
}

/// Kinds of violations that belong to no protection.
const MISSED: &str = "missed";
const UNPROVEN: &str = "unproven";

type Counts = BTreeMap<String, u64>;

fn add(counts: &mut Counts, more: &Counts) {
    for (kind, count) in more {
        let sum = counts.entry(kind.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
}

/// The violations of one guard, those included that belong to no protection.
fn all_violations(by_protection: &Counts, missed: u64, unproven: bool) -> Counts {
    let mut all = by_protection.clone();
    all.insert(MISSED.to_owned(), missed);
    all.insert(UNPROVEN.to_owned(), u64::from(unproven));
    all
}

/// Counts since the service was started.
pub(super) struct Metrics {
    begun: u64,
    unguarded: Counts,
    lost: u64,
    thawed: Counts,
    long: u64,
    denied: Counts,
    violations: Counts,
    held: Histogram,
    armed: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            begun: 0,
            unguarded: Counts::new(),
            lost: 0,
            thawed: Counts::new(),
            long: 0,
            denied: Counts::new(),
            violations: Counts::new(),
            // From a pre-dump of a small process to one of many GiB, in seconds.
            held: Histogram::new([0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]),
            // From programs that were attached before to a host under load, in seconds.
            armed: Histogram::new([0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
        }
    }
}

/// The metrics in both formats that monitoring systems read.
#[derive(Debug, Clone)]
pub(super) struct Page {
    /// Prometheus's text format, version 0.0.4.
    pub(super) prometheus: String,
    /// OpenMetrics 1.0.
    pub(super) open_metrics: String,
    /// The levels among them.
    pub(super) levels: freezer_guard::kernel::Levels,
}

impl Metrics {
    pub(super) fn has_begun(&mut self) {
        self.begun += 1;
    }

    /// `unarmed`: how long an automatic guard refused less than it does now.
    pub(super) fn is_armed(&mut self, unarmed: Duration) {
        self.armed.observe(unarmed.as_secs_f64());
    }

    /// `reason`: why it had no guard.
    pub(super) fn was_unguarded(&mut self, reason: &str) {
        *self.unguarded.entry(reason.to_owned()).or_default() += 1;
    }

    pub(super) fn has_lost(&mut self, events: u64) {
        self.lost += events;
    }

    pub(super) fn has_thawed(&mut self, cgroups: usize, reason: Thaw) {
        *self.thawed.entry(reason.name().to_owned()).or_default() += cgroups as u64;
    }

    pub(super) fn is_long(&mut self) {
        self.long += 1;
    }

    pub(super) fn has_ended(&mut self, guard: &Status) {
        add(&mut self.denied, &guard.denials);
        let violations = all_violations(&guard.violations, guard.missed, guard.unproven);
        add(&mut self.violations, &violations);
        self.held.observe(guard.held_seconds);
    }

    /// Returns all metrics. `has_ended`: whether the end of a guard was counted already.
    pub(super) fn page(&self, tally: &Tally, has_ended: impl Fn(GuardId) -> bool) -> Page {
        let open = tally.guards.iter().filter(|(id, _)| !has_ended(**id));
        let open: Vec<_> = open.map(|(_, counts)| counts).collect();
        let registry = self.registry(tally, &open, Build::here());
        let mut page = Page {
            prometheus: String::new(),
            open_metrics: String::new(),
            levels: tally.levels,
        };
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut page.prometheus, &registry);
        let _ = text::encode(&mut page.open_metrics, &registry);
        page
    }

    /// `open`: the guards whose end was not counted yet.
    fn registry(&self, tally: &Tally, open: &[&GuardCounts], build: Build) -> Registry {
        let mut registry = Registry::with_prefix("freezer_guard");
        registry.register(
            "build",
            "The version of freezer-guard, the id of its BPF programs, and the release of the kernel",
            Info::new(build),
        );
        registry.register(
            "level",
            "The level that guards reach on this host, by protection: 3 enforce, 2 best-effort, 1 detect, 0 missing",
            levels(tally),
        );
        for (name, help, count) in self.counters() {
            registry.register(name, help, counter(count));
        }
        let active = open.iter().filter(|guard| guard.is_in_force).count();
        registry.register("guards_active", "Guards in force", gauge(active as u64));
        self.register_counts(&mut registry, open);
        registry.register(
            "hold_seconds",
            "The time for which guards were held, in seconds",
            self.held.clone(),
        );
        registry.register(
            "arm_seconds",
            "The time from the begin of an automatic guard until it reached its level, in seconds: 0 if the programs \
             that refuse were attached before",
            self.armed.clone(),
        );
        registry.register(
            "recursion_misses",
            "An upper bound of the calls that got past a BPF program and all its copies since its load, of all programs",
            gauge(tally.recursion_misses),
        );
        registry
    }

    /// The name, the meaning and the value of each plain counter.
    fn counters(&self) -> [(&'static str, &'static str, u64); 3] {
        [
            ("guards_begun", "Guards that have begun", self.begun),
            (
                "lost_events",
                "Events that the service has lost, because they came too fast. The other metrics are complete",
                self.lost,
            ),
            (
                "long_dumps",
                "Dumps under an automatic guard that took longer than automatic.warn_after",
                self.long,
            ),
        ]
    }

    /// Registers the counters with a label.
    fn register_counts(&self, registry: &mut Registry, open: &[&GuardCounts]) {
        let mut denied = protections();
        let mut violations = all_violations(&denied, 0, false);
        add(&mut denied, &self.denied);
        add(&mut violations, &self.violations);
        for guard in open {
            add(&mut denied, &guard.denials);
            let more = all_violations(&guard.violations, guard.missed, guard.unproven);
            add(&mut violations, &more);
        }
        registry.register(
            "denied",
            "Attempts that guards have refused, by protection",
            by_kind(denied),
        );
        registry.register(
            "violations",
            "Violations, by protection. Alert on any increase: a checkpoint cannot be trusted",
            by_kind(violations),
        );
        registry.register(
            "unguarded_dumps",
            "Checkpoints without a guard, or with a guard that only detects (failed), by reason. Alert on any increase",
            by_reason(&REASONS, &self.unguarded),
        );
        registry.register(
            "thawed",
            "Cgroups that a checkpointer had left frozen, and that the service has thawed, by reason",
            by_reason(&Thaw::NAMES, &self.thawed),
        );
    }
}

/// Returns the metrics of a service that has just started: with all their names, types and help
/// texts, in Prometheus's text format.
pub(crate) fn description() -> String {
    let build = Build {
        version: "VERSION".to_owned(),
        object: "ID".to_owned(),
        kernel: "RELEASE".to_owned(),
    };
    let registry = Metrics::default().registry(&Tally::default(), &[], build);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

/// Every protection, with the count 0.
fn protections() -> Counts {
    let names = Protection::ALL.into_iter();
    names
        .map(|protection| (protection.name().to_owned(), 0))
        .collect()
}

fn by_kind(counts: Counts) -> Family<Kind, Counter> {
    let family = Family::<Kind, Counter>::default();
    for (kind, count) in counts {
        family.get_or_create(&Kind { kind }).inc_by(count);
    }
    family
}

fn by_reason(reasons: &[&str], counts: &Counts) -> Family<Reason, Counter> {
    let family = Family::<Reason, Counter>::default();
    for reason in reasons {
        let count = counts.get(*reason).copied().unwrap_or_default();
        let reason = (*reason).to_owned();
        family.get_or_create(&Reason { reason }).inc_by(count);
    }
    family
}

fn levels(tally: &Tally) -> Family<Kind, Gauge> {
    let family = Family::<Kind, Gauge>::default();
    for (protection, level) in Protection::ALL.into_iter().zip(tally.levels) {
        let kind = protection.name().to_owned();
        let number = level.map_or(0, |level| level as i64);
        family.get_or_create(&Kind { kind }).set(number);
    }
    family
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
