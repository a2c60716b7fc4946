//! Work that comes again and again.

use freezer_guard::cgroup;
use tokio::time::{Duration, Instant};

use super::{Daemon, worker::Job};

/// How often the metrics are written to their file.
const METRICS: Duration = Duration::from_secs(10);

/// Work that comes again and again.
pub(super) struct Routine {
    metrics_due: Instant,
    had_v1: bool,
}

impl Routine {
    pub(super) fn begin() -> Self {
        Self {
            metrics_due: Instant::now(),
            had_v1: cgroup::has_v1_freezer(),
        }
    }

    pub(super) fn go_on(&mut self, daemon: &Daemon) {
        if Instant::now() < self.metrics_due {
            return;
        }
        self.metrics_due = Instant::now() + METRICS;
        daemon.order(Job::WriteMetrics);
        daemon.order(Job::LookAtLong);
        // Its programs are loaded when there is such a hierarchy.
        let has_v1 = cgroup::has_v1_freezer();
        if std::mem::replace(&mut self.had_v1, has_v1) != has_v1 {
            daemon.order(Job::Watch);
        }
    }
}
