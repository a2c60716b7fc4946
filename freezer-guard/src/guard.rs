//! The state machine of a guard: begin, freeze, CHECKPOINTING, end. The only
//! place that changes a guard's state.

mod admin;
mod around;
pub mod automatic;
mod checks;
mod entries;
mod error;
mod event;
mod freezer;
mod freezing;
mod incident;
mod level;
mod lineage;
mod loading;
mod log;
mod marking;
mod marks;
#[cfg(test)]
mod model;
mod overlap;
mod pidfd;
mod prepare;
mod proof;
mod query;
mod reconcile;
mod restoring;
mod self_test;
mod status;
mod store;
mod summary;
mod tally;

use std::path::PathBuf;

use freezer_guard_abi::{CgroupKey, GuardEntry, GuardId, Protection, control::Answer};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::getpid,
};

pub use admin::{EndedAll, end_all_by_force, end_by_force, end_by_holder, follow, prove, unload};
pub use checks::{refuse_containing, refuse_pid_namespace, verify};
pub use error::{Error, Shortfall, chain};
pub use event::{Event, EventDecoder, What};
pub use incident::{Incident, Outcome, path, unguarded, wall_clock};
pub use level::Requirements;
pub use log::sentence;
pub use pidfd::PidFd;
pub use prepare::Preparation;
pub use query::{count, is_any_in_force, list, of_cgroup, of_id};
pub use restoring::thaw;
pub(crate) use self_test::{call_result, is_never_called};
pub(crate) use status::total;
pub use status::{State, Status};
pub use summary::{describe_level, refusals, violations};
pub use tally::{Counts, Tally, tally};

use crate::{
    cgroup::{self, Cgroup, Report},
    kernel::{self, Hierarchies, Levels, Locked, Maps, ProgramReport, daemon_runs},
};
use entries::holder_pids;
use freezer::wait_quiescent;
use freezing::Freezers;
use lineage::Lineage;
use loading::ensure_loaded;
use marking::{claim, clear_the_way};
use marks::{Marks, release};
use overlap::refuse_overlap;
use reconcile::{detach_idle, hierarchies_in_use, hierarchies_of, hierarchies_there};
use status::{Snapshot, missed, status};
use store::GuardStore;

/// A container as it is seen in the hierarchies it is in: v1 first.
pub type Target = Vec<Cgroup>;

/// A guard that this process holds. Dropping it ends it.
#[derive(Debug)]
pub struct Guard {
    id: GuardId,
    targets: Vec<Target>,
    /// Where each cgroup of the targets lies.
    lineages: Vec<Lineage>,
    /// On a hybrid host, the roots of both hierarchies.
    roots: Vec<CgroupKey>,
    /// The cgroups that tasks of the targets are in, in the other hierarchy.
    around: Vec<Lineage>,
    freezers: Freezers,
    levels: Levels,
    weak_because: Vec<kernel::Error>,
    maps: Maps,
    /// When all targets were FROZEN, `CLOCK_BOOTTIME`, ns.
    frozen_ns: Option<u64>,
    entered: bool,
    ended: bool,
}

/// The disturbances that were counted before something was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before([u64; Protection::COUNT]);

impl Guard {
    /// Marks the targets and makes the calling thread the holder: other threads
    /// of the process, and children that there are, stay outside.
    ///
    /// # Errors
    /// When another guard is in the way or the kernel cannot do what is wanted.
    pub fn begin(targets: Vec<Target>, wanted: &Requirements) -> Result<Self, Error> {
        refuse_pid_namespace()?;
        let targets = cgroup::joined(targets)?;
        let lineages = Lineage::of_all(targets.iter().flatten())?;
        refuse_overlap(&lineages)?;
        let lock = Locked::wait()?;
        // An earlier guard may have wanted another level.
        let loaded = ensure_loaded(&lock, wanted.at_most, None, !daemon_runs())?;
        clear_the_way(&loaded.maps, &lineages, wanted.owner)?;
        // Two guards never begin in the same ns under one lock.
        let mut guard = Self {
            id: now(),
            targets,
            lineages,
            roots: cgroup::hybrid_roots()?,
            around: Vec::new(),
            freezers: Freezers::default(),
            levels: Levels::default(),
            weak_because: loaded.reasons,
            maps: loaded.maps,
            frozen_ns: None,
            entered: false,
            ended: true,
        };
        if let Err(error) = guard.arm_and_claim(&lock, wanted) {
            // No daemon hears of a guard that has not begun.
            lock.detach_unneeded(hierarchies_in_use(&guard.maps)?, lock.watches())?;
            return Err(error);
        }
        guard.ended = false;
        if loaded.was_loaded {
            guard.weak_because.extend(loaded.why_no_stronger);
        }
        Ok(guard)
    }

    /// Attaches what the guard needs, makes its entry and marks its targets.
    fn arm_and_claim(&mut self, lock: &Locked, wanted: &Requirements) -> Result<(), Error> {
        let hierarchies = self.hierarchies()?;
        self.weak_because.extend(lock.attach(hierarchies)?);
        self.weak_because
            .extend(self_test::try_new(lock, hierarchies)?);
        self.levels = wanted.check(lock, hierarchies, &mut self.weak_because)?;
        let entry = GuardEntry {
            begun_ns: self.id,
            allowed: wanted.allowed_bits(),
            levels: level::numbers(self.levels),
            missed_before: self.maps.missed()?,
            target: self
                .lineages
                .first()
                .map(|target| target.key)
                .unwrap_or_default(),
            flags: wanted.owner.map_or(0, |_| GuardEntry::BY_USER),
            owner_uid: wanted.owner.unwrap_or_default().into(),
            ..GuardEntry::default()
        };
        let wait_quiescent = || self.cgroups().for_each(wait_quiescent);
        let (lineages, roots) = (&self.lineages, &self.roots);
        claim(&self.maps, self.id, entry, lineages, roots, wait_quiescent)?;
        let targets: Vec<_> = self.cgroups().collect();
        let is_live = proof::is_live(&self.maps.control, self.id, &entry, &targets);
        if let Ok(true) = is_live {
            return Ok(());
        }
        release(&self.maps, self.id, self.marks(), true)?;
        is_live.and(Err(Error::NotCalled(self.path())))
    }

    /// Hands the guard over to a process as it is now, with its threads, its
    /// descendants, and who comes from them: it ends with the last of them. The
    /// calling thread is no member any more.
    ///
    /// # Errors
    /// When the process has gone, or belongs to the holder of another guard: then
    /// this one has ended.
    pub fn hand_over(mut self, process: &PidFd) -> Result<Status, Error> {
        let pid = process.pid()?;
        // There is one order to enrol somebody at a time.
        let lock = Locked::wait()?;
        self.maps.enrol(self.id, u64::from(pid))?;
        drop(lock);
        // Its number may have been another's by then.
        process.pid()?;
        // Besides this thread.
        if self.entry()?.members < 2 {
            return Err(Error::Nested);
        }
        self.store().leave(self.id)?;
        let status = self.status();
        self.ended = true;
        status
    }

    fn store(&self) -> &dyn GuardStore {
        &self.maps
    }

    fn marks(&self) -> Marks {
        let around = self.around.iter().flat_map(Lineage::line);
        Marks::own(&self.lineages, around.chain(self.roots.iter().copied()))
    }

    fn entry(&self) -> Result<GuardEntry, Error> {
        let entry = self.store().guard(self.id)?;
        entry.ok_or_else(|| Error::WasGone(self.path()))
    }

    /// The first target's path, for messages.
    fn path(&self) -> PathBuf {
        self.cgroups()
            .next()
            .map(|cgroup| cgroup.path().to_owned())
            .unwrap_or_default()
    }

    /// To be taken before the targets are looked at. What is done to them after
    /// it is noticed by [`Guard::checkpointing`]: it is counted when done.
    ///
    /// # Errors
    /// When somebody has ended the guard.
    pub fn before(&self) -> Result<Before, Error> {
        // What was under way comes to its end, and is counted.
        self.cgroups().for_each(wait_quiescent);
        Ok(Before(self.entry()?.disturbances))
    }

    /// Whether something was done to the targets since.
    ///
    /// # Errors
    /// When somebody has ended the guard.
    pub fn is_disturbed(&self, before: Before) -> Result<bool, Error> {
        Ok(self.entry()?.disturbances != before.0)
    }

    /// Verifies that every task of the checkpoint is in the targets or below:
    /// those of the trees below `roots`, or else, of each process that is there,
    /// all threads. What is checked after the mark cannot change unnoticed.
    ///
    /// # Errors
    /// When one is elsewhere, or is being traced.
    pub fn verify(&self, roots: &[i32]) -> Result<Report, Error> {
        verify(&self.targets, roots)
    }

    /// Enters CHECKPOINTING, unless something was done to the targets since
    /// `before`: then it returns what is known of that, which may be nothing, and
    /// the targets have to be looked at again. `None`: it is CHECKPOINTING.
    ///
    /// # Errors
    /// When the guard was ended by somebody, or tasks were killed meanwhile.
    pub fn checkpointing(&mut self, before: Before) -> Result<Option<Vec<Incident>>, Error> {
        match self.store().enter(self.id, before.0)? {
            Answer::Done => {
                self.entered = true;
                Ok(None)
            }
            Answer::Disturbed => {
                let entry = self.entry()?;
                let incidents = status(&self.maps, self.id, &entry)?.repaired_incidents();
                let kill = Protection::Kill as usize;
                if entry.disturbances[kill] != before.0[kill] {
                    return Err(self.disturbed(&incidents));
                }
                Ok(Some(incidents))
            }
            _ => Err(Error::WasGone(self.path())),
        }
    }

    /// The error for one that cannot be set up for all that is done to it.
    pub fn disturbed(&self, incidents: &[Incident]) -> Error {
        Error::Disturbed {
            path: self.path(),
            incidents: incidents.iter().map(Incident::to_string).collect(),
        }
    }

    /// What it did so far.
    ///
    /// # Errors
    /// When somebody has ended it.
    pub fn status(&self) -> Result<Status, Error> {
        let entry = self.entry()?;
        let targets = self.cgroups().map(Cgroup::key).collect();
        let seen = Snapshot::of_one(&self.maps, self.id, &entry, targets)?;
        let status = seen.status(&self.maps, self.id, &entry)?;
        Ok(self.with_frozen(status))
    }

    /// Adds the time that this process alone knows.
    fn with_frozen(&self, mut status: Status) -> Status {
        status.frozen = self.frozen_ns.map(wall_clock);
        status
    }

    /// How many violations have been counted, and one more if the guard has no proof.
    ///
    /// # Errors
    /// When the map cannot be read. A guard that is gone has none.
    pub fn violations(&self) -> Result<u64, Error> {
        let entry = self.store().guard(self.id)?;
        Ok(entry.map_or(0, |entry| {
            let unproven = entry.flags & GuardEntry::UNPROVEN != 0;
            entry.violations().iter().sum::<u64>() + u64::from(unproven)
        }))
    }

    /// See [`Status::missed`].
    ///
    /// # Errors
    /// When the kernel does not tell. A guard that is gone has none.
    pub fn missed(&self) -> Result<u64, Error> {
        match self.store().guard(self.id)? {
            Some(entry) => missed(&self.maps, &entry),
            None => Ok(0),
        }
    }

    /// How far each protection goes.
    pub fn levels(&self) -> Levels {
        self.levels
    }

    /// Why some protections do not go further, as far as this process has seen it.
    pub fn weak_because(&self) -> &[kernel::Error] {
        &self.weak_because
    }

    /// Its id.
    pub fn id(&self) -> GuardId {
        self.id
    }

    /// Every guarded cgroup.
    pub fn cgroups(&self) -> impl Iterator<Item = &Cgroup> {
        self.targets.iter().flatten()
    }

    /// The cgroups that tasks of the targets are in, in the other hierarchy of a hybrid host. The
    /// guard prevents a freeze of them too.
    pub fn around(&self) -> Vec<PathBuf> {
        self.around.iter().map(|around| path(around.key)).collect()
    }

    /// The hierarchies whose programs the guard needs.
    ///
    /// # Errors
    /// When the mounts cannot be read.
    pub fn hierarchies(&self) -> Result<Hierarchies, Error> {
        match self.roots.is_empty() {
            true => Ok(hierarchies_of(self.cgroups())),
            false => hierarchies_there(),
        }
    }

    /// Tests whether the kernel calls the programs of this guard, and returns them with their
    /// calls. A program that it does not call is detached.
    ///
    /// # Errors
    /// When the kernel does not call a program that no guard goes without.
    pub fn try_programs(&self) -> Result<Vec<ProgramReport>, Error> {
        let lock = Locked::wait()?;
        self_test::try_all(&lock, self.hierarchies()?)
    }

    /// The processes of the holder besides this one.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn other_pids(&self) -> Result<Vec<u32>, Error> {
        let mut pids = holder_pids(&self.maps, self.id)?;
        pids.retain(|pid| *pid != getpid().as_raw() as u32);
        Ok(pids)
    }

    /// Restores the state each target was found in, ends the guard, and returns
    /// what it did. `None`: somebody has ended it before. Then what we froze is
    /// thawed, unless somebody guards it by now.
    ///
    /// # Errors
    /// When a cgroup cannot be restored; the guard has ended even so. A violation
    /// is told first.
    pub fn end(mut self) -> Result<Option<Status>, Error> {
        self.end_now()
    }

    fn end_now(&mut self) -> Result<Option<Status>, Error> {
        self.ended = true;
        // Before the lock is waited for: who has it may be frozen by us.
        let restored = self
            .freezers
            .restore(&self.maps, self.id, self.cgroups(), self.entered);
        let lock = Locked::wait_to_the_end()?;
        // The pinned maps are others than ours if somebody has ended this guard
        // and the next one was loaded anew.
        let Some(maps) = lock.open()? else {
            return Ok(None);
        };
        // The kernel side counts a write a moment after it, and this one has to count.
        self.cgroups().for_each(wait_quiescent);
        proof::prove_end(&lock, &maps, self.id, &self.cgroups().collect::<Vec<_>>())?;
        let end = release(&maps, self.id, self.marks(), restored.is_ok())?;
        detach_idle(&lock, &maps)?;
        match (end, restored) {
            (Some(status), Err(error)) if status.violation_count() == 0 => Err(error),
            (end, _) => Ok(end.map(|status| self.with_frozen(status))),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            // On the way out of an error, which is what gets reported. If this
            // fails too, the guard still ends with this process.
            let _ = self.end_now();
        }
    }
}

/// Returns the time of `CLOCK_BOOTTIME` in ns: the clock of the BPF side.
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
