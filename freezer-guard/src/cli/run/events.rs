//! Refusals as they happen, for `--verbose`.

use aya::maps::{MapData, RingBuf};
use freezer_guard::guard::{self, Guard};
use freezer_guard_ebpf::{Denial, PROTECTED_FILES};
use tokio::io::unix::AsyncFd;

use crate::cli::say;

/// The ring buffer of refusals, or nothing to wait for.
pub(super) struct Events {
    ring: Option<AsyncFd<RingBuf<MapData>>>,
}

impl Events {
    pub(super) fn open(guard: &Guard, verbose: bool) -> anyhow::Result<Self> {
        let ring = match verbose {
            true => Some(freezer_guard::watch_events(guard.maps().events()?)?),
            false => None,
        };
        Ok(Self { ring })
    }

    /// Returns when there may be something to print.
    pub(super) async fn ready(&mut self) {
        match &mut self.ring {
            Some(ring) => match ring.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Prints what is there of this guard's. Those of others are taken too:
    /// the ring has one reader. Their counters are not touched.
    pub(super) fn print(&mut self, guard: &Guard) {
        let Some(ring) = &mut self.ring else { return };
        while let Some(item) = ring.get_mut().next() {
            let Some(denial) = Denial::from_bytes(&item) else {
                continue;
            };
            if denial.guard != guard.id() {
                continue;
            }
            let cgroup = guard.path_of(denial.cgroup);
            let file = PROTECTED_FILES
                .get(denial.file as usize)
                .map_or("?", |file| file.name);
            say(format_args!(
                "refused {} (pid {}, uid {}): write to {cgroup}/{file}",
                guard::comm(&denial.comm),
                denial.pid,
                denial.uid,
            ));
        }
    }
}
