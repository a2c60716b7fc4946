//! The guard that is held: our own, or one that the service has begun for it,
//! where it may not use BPF itself. What it is asked has the same answers.

use std::{os::fd::OwnedFd, time::Duration};

use freezer_guard::{
    cgroup::Cgroup,
    guard::{Guard, PidFd, Status, Target},
};
use freezer_guard_abi::GuardId;
use nix::unistd::getpid;
use tokio::time::sleep;
use zlink::tokio::unix;

use super::GuardedCommand;
use crate::cli::client::{self, Daemon as _, TIMEOUT, answer, answer_within};
use crate::cli::error::{Error, Result};
use crate::daemon::reply;

pub(super) enum ActiveGuard {
    Here {
        guard: Box<Guard>,
        missed: u64,
    },
    Service {
        daemon: Box<unix::Connection>,
        guard: Box<Status>,
        cgroup: String,
        targets: Vec<Target>,
    },
}

impl ActiveGuard {
    pub(super) fn here(guard: Guard) -> Self {
        Self::Here {
            guard: Box::new(guard),
            missed: 0,
        }
    }

    /// Asks the service to begin it for us, and to bring it to CHECKPOINTING.
    pub(super) async fn by_service(
        mut daemon: unix::Connection,
        work: &mut GuardedCommand<'_>,
    ) -> Result<Self> {
        let options = work.options;
        if options.level < freezer_guard_abi::Level::Enforce {
            return Err(Error::ServiceLevel(options.level.name()));
        }
        let cgroups: Vec<_> = work.targets.iter().flatten().map(Cgroup::address).collect();
        // That we may write them says that we may guard them; where we may not,
        // the service has to trust us for something else.
        let proofs: Vec<OwnedFd> = work
            .targets
            .iter()
            .flatten()
            .filter_map(|cgroup| {
                let freezer = std::fs::File::options()
                    .write(true)
                    .open(cgroup.freezer_file());
                freezer.ok().map(OwnedFd::from)
            })
            .collect();
        // One has a place in the call; several are verified after it.
        let (root, more) = match work.roots[..] {
            [root] => (Some(root.into()), &[][..]),
            _ => (None, &work.roots[..]),
        };
        let begun = daemon.begin(
            // Without, it takes those of the process, as we do.
            work.named.then(|| cgroups.clone()),
            work.freeze,
            options.freeze_timeout.as_secs_f64(),
            root,
            options.allow.iter().map(ToString::to_string).collect(),
            options.required()?.name().to_owned(),
            proofs,
        );
        let timeout = options.freeze_timeout + TIMEOUT;
        let guard = answer_within(timeout, begun).await?.guard;
        for root in more {
            answer(daemon.verify(cgroups.clone(), Some(i64::from(*root)))).await?;
        }
        Ok(Self::Service {
            daemon: Box::new(daemon),
            guard: Box::new(guard),
            cgroup: cgroups.into_iter().next().unwrap_or_default(),
            targets: std::mem::take(&mut work.targets),
        })
    }

    pub(super) fn id(&self) -> GuardId {
        match self {
            Self::Here { guard, .. } => guard.id(),
            Self::Service { guard, .. } => guard.id,
        }
    }

    /// The guarded cgroups.
    pub(super) fn cgroups(&self) -> Vec<&Cgroup> {
        match self {
            Self::Here { guard, .. } => guard.cgroups().collect(),
            Self::Service { targets, .. } => targets.iter().flatten().collect(),
        }
    }

    /// What it did so far.
    pub(super) async fn status(&mut self) -> Result<Status> {
        match self {
            Self::Here { guard, .. } => Ok(guard.status()?),
            Self::Service {
                daemon,
                guard,
                cgroup,
                ..
            } => {
                let seen = look_until_seen(daemon, guard, cgroup).await?;
                remember(guard, seen);
                Ok(Status::clone(guard))
            }
        }
    }

    /// Looks again at what costs more than a look into a map. What the service does not
    /// answer at once it is asked again.
    pub(super) async fn check(&mut self) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(1);
        match self {
            Self::Here { guard, missed } => *missed = guard.missed()?,
            Self::Service {
                daemon,
                guard,
                cgroup,
                ..
            } => match look(daemon, guard, cgroup, TIMEOUT).await {
                Ok(seen) => remember(guard, seen),
                Err(_) => reconnect(daemon).await,
            },
        }
        Ok(())
    }

    /// How many violations there were, or may have been, as far as has been looked.
    pub(super) fn violations(&self) -> Result<u64> {
        match self {
            Self::Here { guard, missed } => Ok(guard.violations()? + missed),
            Self::Service { guard, .. } => Ok(guard.violation_count()),
        }
    }

    /// Kills every process of the holder but this one.
    pub(super) async fn kill_holder(&mut self) -> Result<()> {
        /// How many descriptors it takes at once.
        const AT_ONCE: usize = 256;
        for pids in self.other_pids().await?.chunks(AT_ONCE) {
            let open = |pid: &u32| Some((*pid, PidFd::open(*pid).ok()?));
            let processes: Vec<_> = pids.iter().filter_map(open).collect();
            // A number may have become that of another process before it was opened.
            let members = self.other_pids().await?;
            for (pid, process) in processes {
                if members.contains(&pid) {
                    process.kill();
                }
            }
        }
        Ok(())
    }

    /// The processes of the holder besides this one.
    pub(super) async fn other_pids(&mut self) -> Result<Vec<u32>> {
        match self {
            Self::Here { guard, .. } => Ok(guard.other_pids()?),
            Self::Service { .. } => {
                let mut pids = self.status().await?.holder_pids;
                pids.retain(|pid| *pid != getpid().as_raw().cast_unsigned());
                Ok(pids)
            }
        }
    }

    /// Ends it. `None`: somebody has done so before.
    pub(super) async fn end(self) -> Result<Option<Status>> {
        match self {
            Self::Here { guard, .. } => Ok(guard.end()?),
            Self::Service {
                mut daemon,
                mut guard,
                cgroup,
                ..
            } => {
                if look_until_seen(&mut daemon, &guard, &cgroup)
                    .await?
                    .is_none()
                {
                    return Ok(None);
                }
                match answer(daemon.end(Some(&cgroup), Some(guard.id), false)).await {
                    Ok(ended) => Ok(Some(with_frozen(ended.guard, &mut guard))),
                    Err(Error::Service(reply::Error::NotGuarded { .. })) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

fn remember(guard: &mut Status, seen: Option<Status>) {
    match seen {
        Some(now) => *guard = with_frozen(now, guard),
        // Their numbers may be others' by now.
        None => guard.holder_pids.clear(),
    }
}

/// Adds the time that only the answer to the begin has.
fn with_frozen(now: Status, begun: &mut Status) -> Status {
    Status {
        frozen: begun.frozen.take(),
        ..now
    }
}

/// What the service says of the guard now; `None`: it is in force no more.
async fn look(
    daemon: &mut unix::Connection,
    guard: &Status,
    cgroup: &str,
    timeout: Duration,
) -> Result<Option<Status>> {
    match answer_within(timeout, daemon.status(cgroup, Some(guard.id))).await {
        Ok(now) => Ok(now.guard),
        // It knows us by the guard.
        Err(Error::Service(
            reply::Error::NotGuarded { .. } | reply::Error::PermissionDenied { .. },
        )) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same from a service that may just be starting anew, which the guard does not
/// notice.
async fn look_until_seen(
    daemon: &mut unix::Connection,
    guard: &Status,
    cgroup: &str,
) -> Result<Option<Status>> {
    /// systemd starts it at once; loading everything may take some seconds.
    const ATTEMPTS: u32 = 60;
    for _ in 0..ATTEMPTS {
        if let Ok(seen) = look(daemon, guard, cgroup, TIMEOUT).await {
            return Ok(seen);
        }
        sleep(Duration::from_millis(500)).await;
        reconnect(daemon).await;
    }
    look(daemon, guard, cgroup, TIMEOUT).await
}

/// An answer that did not come may still, and be taken for the next one's.
async fn reconnect(daemon: &mut unix::Connection) {
    if let Ok(Some(again)) = client::connect().await {
        *daemon = again;
    }
}
