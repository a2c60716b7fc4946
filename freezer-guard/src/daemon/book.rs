//! What has been, in numbers for a monitoring system and as the last guards that
//! have ended.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use freezer_guard::guard::Status;
use freezer_guard_abi::{GuardId, Protection};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Where the last guards are kept: over a restart of the daemon and of the host.
pub(crate) const LAST: &str = "/var/lib/freezer-guard/last.json";
/// How many.
const KEPT: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

type Counts = BTreeMap<String, u64>;

fn add(counts: &mut Counts, more: &Counts) {
    for (kind, count) in more {
        *counts.entry(kind.clone()).or_default() += count;
    }
}

/// What the daemon has seen since it was started.
pub(super) struct Book {
    begun: u64,
    unguarded: u64,
    lost: u64,
    denied: Counts,
    violations: Counts,
    held: Histogram,
    last: VecDeque<Status>,
}

impl Book {
    pub(super) fn open() -> Self {
        let last = fs::read(LAST)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            begun: 0,
            unguarded: 0,
            lost: 0,
            denied: Counts::new(),
            violations: Counts::new(),
            // From a pre-dump of a small process to one of many GiB.
            held: Histogram::new([0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]),
            last,
        }
    }

    pub(super) fn has_begun(&mut self) {
        self.begun += 1;
    }

    pub(super) fn was_unguarded(&mut self) {
        self.unguarded += 1;
    }

    pub(super) fn has_lost(&mut self, events: u64) {
        self.lost += events;
    }

    pub(super) fn has_ended(&mut self, guard: Status) {
        add(&mut self.denied, &guard.denials);
        add(&mut self.violations, &guard.violations);
        self.held.observe(guard.held_seconds);
        self.last.push_back(guard);
        while self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    /// The last guards that have ended, the oldest first.
    pub(super) fn last(&self) -> Vec<Status> {
        self.last.iter().cloned().collect()
    }

    /// Whether this guard is among them.
    pub(super) fn has(&self, id: GuardId) -> bool {
        self.last.iter().any(|guard| guard.id == id)
    }

    /// In Prometheus's text format. `held`: the guards in force.
    pub(super) fn metrics(&self, held: &[Status], recursion_misses: u64) -> String {
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
        registry.register("guards_active", "Guards in force", gauge(held.len() as u64));
        registry.register("guards_begun", "Guards begun", counter(self.begun));
        registry.register(
            "denied",
            "Operations refused, by protection",
            by_kind(&self.denied, |guard| &guard.denials),
        );
        registry.register(
            "violations",
            "Disturbances of checkpoints under way, by protection",
            by_kind(&self.violations, |guard| &guard.violations),
        );
        registry.register(
            "unguarded_dumps",
            "Checkpoints that could not be guarded automatically",
            counter(self.unguarded),
        );
        registry.register(
            "hold_seconds",
            "How long guards were held",
            self.held.clone(),
        );
        registry.register(
            "lost_events",
            "Events that came too fast to be read; the counts are complete",
            counter(self.lost),
        );
        registry.register(
            "recursion_misses",
            "Runs of BPF programs that the kernel left out since they were loaded",
            gauge(recursion_misses),
        );
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        of_the_old_format(&text)
    }
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

/// Keeps the last guards over the service's end.
pub(super) fn keep(last: &[Status]) -> io::Result<()> {
    replace(Path::new(LAST), 0o600, &serde_json::to_vec(last)?)
}

/// Replaces a file, so that a reader sees all of it or none. `mode`: its permissions. The new one
/// never follows a link that somebody has put into the folder.
pub(super) fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // The collector of metrics reads what ends in `.prom`.
    let mut file = tempfile::Builder::new()
        .suffix(".new")
        .tempfile_in(folder)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Book;

    #[test]
    fn metrics_are_there_before_anything_happens() {
        let mut book = Book::open();
        book.has_begun();
        book.was_unguarded();
        book.has_lost(7);
        let text = book.metrics(&[], 3);
        for line in [
            "freezer_guard_guards_active 0",
            "freezer_guard_guards_begun_total 1",
            "freezer_guard_unguarded_dumps_total 1",
            "freezer_guard_lost_events_total 7",
            "freezer_guard_recursion_misses 3",
            "freezer_guard_hold_seconds_count 0",
            "# TYPE freezer_guard_denied_total counter",
            "# HELP freezer_guard_guards_begun_total Guards begun.",
            "freezer_guard_denied_total{kind=\"kill\"} 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?} in {text}"
            );
        }
    }
}
