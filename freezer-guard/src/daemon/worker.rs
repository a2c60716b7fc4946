//! What has to be done when something happens: one thing after the other, since
//! each waits for the lock of the pins.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, SystemTime},
};

use freezer_guard::{
    guard::{
        self, Event, What,
        automatic::{self, Ended},
        describe_level,
    },
    words::{escaped, join},
};
use freezer_guard_abi::GuardId;
use tokio::{
    sync::mpsc,
    task::spawn_local,
    time::{Instant, timeout},
};
use tracing::{error, info, warn};

use super::{
    Daemon, blocking, config,
    error::{Error, Result},
    features, history,
    journal::{by, cgroups, log, tell_end, tell_not_thawed, tell_thawed},
    known::Known,
    metrics::Thaw,
    replace::replace,
    units::finish_stops,
};

/// How long what refuses stays attached after the last guard: the next one may
/// begin at once.
const LINGER: Duration = Duration::from_secs(2);

pub(super) enum Job {
    /// A cgroup has become a target of each of these guards.
    Begun(Vec<GuardId>),
    /// A guard has ended.
    Ended,
    /// A checkpointer will freeze a cgroup.
    Expected,
    /// A denial or a disturbance that was not told yet.
    Log(Box<Event>),
    /// A user has held this guard for too long.
    Overdue(GuardId),
    /// Events were lost: it is not known which.
    LookAgain,
    /// Some dumps may take too long.
    LookAtLong,
    /// The configuration has changed.
    Watch,
    WriteMetrics,
    /// Nothing comes after this.
    Stop,
}

struct Worker {
    daemon: Rc<Daemon>,
    known: BTreeMap<GuardId, Known>,
    /// Whether more may be attached than is needed.
    is_too_much_attached: bool,
    /// The file for Node Feature Discovery.
    features: Option<features::Written>,
}

/// Does one job after the other.
pub(super) async fn keep(daemon: Rc<Daemon>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut worker = Worker {
        daemon,
        known: BTreeMap::new(),
        is_too_much_attached: false,
        features: None,
    };
    let mut next = None;
    loop {
        let job = match next.take() {
            Some(job) => Ok(Some(job)),
            None => timeout(LINGER, jobs.recv()).await,
        };
        let done = match job {
            Ok(Some(Job::Begun(mut ids))) => {
                // Many that have begun are looked at together.
                next = gather(&mut jobs, |job| match job {
                    Job::Begun(more) => {
                        ids.extend(more);
                        None
                    }
                    other => Some(other),
                });
                worker.begun(ids).await
            }
            Ok(Some(Job::Ended)) => {
                next = gather(&mut jobs, |job| match job {
                    Job::Ended => None,
                    other => Some(other),
                });
                worker.ended().await
            }
            Ok(Some(Job::Expected)) => {
                next = gather(&mut jobs, |job| match job {
                    Job::Expected => None,
                    other => Some(other),
                });
                worker.expect().await
            }
            Ok(Some(Job::Stop)) => {
                if let Err(error) = worker.ended().await {
                    error!("{}", guard::chain(&error));
                }
                return;
            }
            Ok(Some(job)) => worker.work(job).await,
            Ok(None) => return,
            Err(_) => worker.detach_idle().await,
        };
        if let Err(error) = done {
            error!("{}", guard::chain(&error));
        }
    }
}

/// Lets `take` have the jobs that wait, until it returns one that it does not want.
fn gather(
    jobs: &mut mpsc::UnboundedReceiver<Job>,
    mut take: impl FnMut(Job) -> Option<Job>,
) -> Option<Job> {
    while let Ok(job) = jobs.try_recv() {
        if let Some(other) = take(job) {
            return Some(other);
        }
    }
    None
}

impl Worker {
    async fn work(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Begun(ids) => self.begun(ids).await,
            Job::Ended => self.ended().await,
            Job::Expected => self.expect().await,
            Job::Log(event) => {
                let way_out = match event.by.as_ref().map(|by| &*by.protection) {
                    Some("kill") if event.event == What::Denial => {
                        self.known.get_mut(&event.guard).and_then(Known::way_out)
                    }
                    _ => None,
                };
                log(&event, &way_out.unwrap_or_default());
                Ok(())
            }
            Job::Overdue(id) => self.end_overdue(id).await,
            Job::LookAgain => {
                let guards = blocking(guard::list).await?;
                self.begun(guards.iter().map(|guard| guard.id).collect())
                    .await?;
                self.expect().await?;
                self.ended().await
            }
            Job::LookAtLong => {
                self.look_at_long().await;
                Ok(())
            }
            Job::Watch => self.daemon.watch().await,
            Job::WriteMetrics => self.write_metrics().await,
            Job::Stop => Ok(()),
        }
    }

    async fn begun(&mut self, ids: Vec<GuardId>) -> Result<()> {
        self.is_too_much_attached = true;
        // For every one of their targets, as there may be more than before.
        for (id, begun) in blocking(move || automatic::arm(&ids)).await? {
            self.has_begun(id, begun);
        }
        Ok(())
    }

    async fn expect(&mut self) -> Result<()> {
        self.is_too_much_attached = true;
        blocking(automatic::expect).await
    }

    fn has_begun(&mut self, id: GuardId, begun: Result<automatic::Begun, guard::Error>) {
        let is_new = self.known.get(&id).is_none_or(|known| !known.has_begun);
        let (status, unarmed) = match begun {
            Ok(begun) => {
                if is_new {
                    for reason in &begun.weak_because {
                        warn!(guard = id, "reduced enforcement: {}", guard::chain(reason));
                    }
                }
                (begun.status, begun.unarmed)
            }
            Err(error) => {
                self.daemon.metrics.borrow_mut().was_unguarded("failed");
                error!(
                    guard = id,
                    kind = "unguarded",
                    "unguarded: the service detects disturbances and cannot refuse them: {}",
                    guard::chain(&error)
                );
                return;
            }
        };
        let known = self.known.entry(id).or_default();
        known.begin(id, &status);
        if is_new && status.owner_uid.is_some() {
            let longest = self.daemon.config.borrow().users.longest_hold;
            let left = longest.saturating_sub(Duration::from_secs_f64(status.held_seconds));
            let due = Instant::now() + left;
            self.daemon.deadlines.borrow_mut().insert(id, due);
        }
        if is_new {
            let mut metrics = self.daemon.metrics.borrow_mut();
            metrics.has_begun();
            if let Some(unarmed) = unarmed {
                metrics.is_armed(unarmed);
            }
            info!(
                guard = id,
                cgroup = cgroups(&status),
                holder_pid = status.holder_pids.first().copied().unwrap_or_default(),
                kind = "begun",
                "guarding {}{}{} ({})",
                if status.seized {
                    "seized tasks in "
                } else {
                    ""
                },
                escaped(&cgroups(&status)),
                by(&status),
                describe_level(&status)
            );
        }
    }

    /// Ends the guard of a user. Its cgroups are thawed, as if the holder had ended.
    async fn end_overdue(&self, id: GuardId) -> Result<()> {
        let Some(known) = self.known.get(&id) else {
            return Ok(());
        };
        warn!(
            guard = id,
            "ending the guard of {}: a user has held it for longer than `users.longest_hold`",
            escaped(&join(&known.cgroups, " "))
        );
        self.end_in_its_name(id, Thaw::LongestHold).await
    }

    /// `reason`: that of a thaw.
    async fn end_in_its_name(&self, id: GuardId, reason: Thaw) -> Result<()> {
        let known = self.known.get(&id);
        let name = known.and_then(|known| known.cgroups.first().cloned());
        let name = name.unwrap_or_default();
        match blocking(move || guard::end_by_holder(id, &name)).await {
            // It has ended by itself.
            Err(Error::Guard(guard::Error::NotGuarded(_))) => Ok(()),
            ended => {
                let (_, thawed) = ended?;
                let mut metrics = self.daemon.metrics.borrow_mut();
                metrics.has_thawed(thawed.len(), reason);
                tell_thawed(thawed, reason);
                Ok(())
            }
        }
    }

    /// Warns of dumps that take too long, and ends those that take far too long.
    async fn look_at_long(&mut self) {
        let (warn_after, limit) = {
            let config = self.daemon.config.borrow();
            (config.automatic.warn_after, config.automatic.timeout)
        };
        let mut over = Vec::new();
        for (id, known) in &mut self.known {
            if let Some(warning) = known.warning(warn_after) {
                self.daemon.metrics.borrow_mut().is_long();
                warn!(guard = id, kind = "long", "{warning}");
            }
            if known.is_over(limit) {
                over.push((*id, known.was_killed));
            }
        }
        for (id, was_killed) in over {
            let ended = match was_killed {
                false => self.kill_holder(id).await,
                true => self.end_in_its_name(id, Thaw::Timeout).await,
            };
            if let Err(error) = ended {
                error!(guard = id, "{}", guard::chain(&error));
            }
        }
    }

    async fn kill_holder(&mut self, id: GuardId) -> Result<()> {
        let pids = blocking(move || automatic::kill_holder(id)).await?;
        error!(
            guard = id,
            kind = "long",
            "killed the checkpointer {pids:?}: its dump took longer than `automatic.timeout`"
        );
        if let Some(known) = self.known.get_mut(&id) {
            known.was_killed = true;
        }
        Ok(())
    }

    async fn ended(&mut self) -> Result<()> {
        self.is_too_much_attached = true;
        let counting = self.daemon.counting.lock().await;
        let ended = blocking(automatic::take_ended).await?;
        let any = !ended.is_empty();
        for Ended {
            mut status,
            thawed,
            not_thawed,
        } in ended
        {
            // Also by a service before this one.
            let was_told = self.daemon.frozen.borrow_mut().remove(&status.id)
                || self.daemon.history.borrow().has(status.id);
            if not_thawed.is_some() {
                self.daemon.frozen.borrow_mut().insert(status.id);
            }
            let known = self.known.get(&status.id);
            let reason = match known.is_some_and(|known| known.was_killed) {
                true => Thaw::Timeout,
                false => Thaw::Killed,
            };
            let mut metrics = self.daemon.metrics.borrow_mut();
            metrics.has_thawed(thawed.len(), reason);
            drop(metrics);
            tell_thawed(thawed, reason);
            if let Some(error) = not_thawed.filter(|_| !was_told) {
                tell_not_thawed(&error);
            }
            if was_told {
                continue;
            }
            self.daemon.logged.borrow_mut().remove(&status.id);
            self.daemon.deadlines.borrow_mut().remove(&status.id);
            let known = self.known.remove(&status.id);
            if known.as_ref().is_none_or(|known| !known.has_begun) {
                self.daemon.metrics.borrow_mut().has_begun();
            }
            if let Some(known) = known
                && !known.cgroups.is_empty()
            {
                status.name_cgroups(known.cgroups);
            }
            tell_end(&status);
            self.daemon.metrics.borrow_mut().has_ended(&status);
            if self.daemon.config.borrow().units.finish_stops {
                spawn_local(finish_stops(status.clone()));
            }
            self.daemon.history.borrow_mut().push(status);
        }
        drop(counting);
        if any {
            let last = self.daemon.history.borrow().last();
            let failed = Error::io(format!("write {}", history::LAST));
            if let Err(error) = blocking(move || history::keep(&last).map_err(failed)).await {
                warn!("cannot {}", guard::chain(&error));
            }
        }
        Ok(())
    }

    /// With a guard in force nothing that is attached is too much.
    async fn detach_idle(&mut self) -> Result<()> {
        if self.is_too_much_attached
            && self.daemon.ready.get()
            && !blocking(automatic::is_any_expected).await?
        {
            self.daemon.watch().await?;
            self.is_too_much_attached = false;
            self.daemon.logged.borrow_mut().clear();
        }
        Ok(())
    }

    async fn write_metrics(&mut self) -> Result<()> {
        let config::Metrics {
            textfile,
            node_features,
        } = self.daemon.config.borrow().metrics.clone();
        let is_wanted = |path: &Path| !path.as_os_str().is_empty();
        if !self.daemon.ready.get() || !(is_wanted(&textfile) || is_wanted(&node_features)) {
            return Ok(());
        }
        let page = self.daemon.metrics().await?;
        if is_wanted(&textfile) {
            write(textfile, page.prometheus).await;
        }
        let (levels, now) = (page.levels, SystemTime::now());
        let last = self.features.as_ref();
        let is_enough = last.is_some_and(|last| last.is_enough(&node_features, &levels, now));
        if is_wanted(&node_features) && !is_enough {
            let written = features::Written::new(&node_features, levels, now);
            let is_written = write(node_features, features::text(&levels, now)).await;
            self.features = is_written.then_some(written);
        }
        Ok(())
    }
}

/// Replaces a file for others to read. Returns whether it could.
async fn write(path: PathBuf, text: String) -> bool {
    let failed = Error::io(format!("write {}", path.display()));
    let write = move || replace(&path, 0o644, text.as_bytes()).map_err(failed);
    let written = blocking(write).await;
    if let Err(error) = &written {
        warn!("cannot {}", guard::chain(error));
    }
    written.is_ok()
}
