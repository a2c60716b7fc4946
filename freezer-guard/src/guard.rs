//! The state machine of a guard: begin, freeze, CHECKPOINTING, end. The only
//! place that changes a guard's state.

pub mod automatic;
mod checks;
mod deed;
mod entries;
mod error;
mod freezing;
mod happening;
mod level;
mod marks;
mod others;
mod overlap;
mod pidfd;
mod prepare;
mod query;
mod reconcile;
mod status;
mod summary;

use std::path::PathBuf;

use freezer_guard_abi::{CgroupKey, Guard as Entry, GuardId, Protection, control};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::getpid,
};

pub use checks::{refuse_containing, verify};
pub use deed::{Deed, Outcome, path, unguarded, wall_clock};
pub use error::{Error, Weak, chain};
pub use happening::{Chronicle, Happening};
pub use level::Wanted;
pub use others::{EndedAll, end_all_by_force, end_by_force, end_by_holder, follow, unload};
pub use pidfd::PidFd;
pub use prepare::Preparation;
pub use query::{count, is_any_in_force, list, of_cgroup, of_id};
pub use status::Status;
pub use summary::{describe_level, refusals, violations};

use crate::{
    cgroup::{self, Cgroup, Report},
    kernel::{self, Hierarchies, Levels, Locked, Maps, daemon_runs},
    sys,
};
use entries::is_idle;
use marks::{Marks, ancestors, mark_ancestors, mark_target, release};
use overlap::{displace_users, refuse_guarded, refuse_overlap};
use reconcile::{detach_idle, hierarchies_in_use, reconcile};
use status::{Seen, holder_pids, missed, status};

/// A container as it is seen in the hierarchies it is in: v1 first.
pub type Target = Vec<Cgroup>;

/// A guard that this process holds. Dropping it ends it.
#[derive(Debug)]
pub struct Guard {
    id: GuardId,
    targets: Vec<Target>,
    /// What is above them, once all of it is marked.
    ancestors: Option<Vec<CgroupKey>>,
    /// Those that we froze.
    froze: Vec<CgroupKey>,
    /// Those that were frozen before.
    found_frozen: Vec<CgroupKey>,
    /// Whether the freezers have been looked at once.
    looked_at: bool,
    levels: Levels,
    weak_because: Vec<kernel::Error>,
    maps: Maps,
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
    pub fn begin(targets: Vec<Target>, wanted: &Wanted) -> Result<Self, Error> {
        if !sys::is_initial_pid_namespace() {
            return Err(Error::PidNamespace);
        }
        refuse_overlap(&targets)?;
        let lock = Locked::wait()?;
        let mut opened = lock.open()?;
        let (strongest, why_no_stronger) = Locked::strongest(wanted.at_most)?;
        if let Some(maps) = &mut opened {
            reconcile(maps)?;
            // An earlier guard may have wanted another level.
            if !daemon_runs() && is_idle(maps)? && lock.level() != Some(strongest) {
                lock.unload()?;
                opened = None;
            }
        }
        let is_loaded = opened.is_some();
        let (mut maps, mut reasons) = match opened {
            Some(maps) => (maps, Vec::new()),
            None => lock.load(wanted.at_most)?,
        };
        if wanted.owner.is_none() {
            displace_users(&mut maps, &targets)?;
        }
        refuse_guarded(&maps, &targets, None)?;
        // A guard may have ended since: its marks would be in our way.
        reconcile(&mut maps)?;
        let mut hierarchies = Hierarchies::default();
        for cgroup in targets.iter().flatten() {
            match cgroup.version() {
                cgroup::Version::V1 => hierarchies.v1 = true,
                cgroup::Version::V2 => hierarchies.v2 = true,
            }
        }
        let mut attach = || {
            reasons.extend(lock.attach(hierarchies)?);
            let levels = wanted.check(&lock, hierarchies, &mut reasons)?;
            Ok((levels, maps.missed()?))
        };
        let (levels, missed_before) = match attach() {
            Ok(usable) => usable,
            Err(error) => {
                // No daemon hears of a guard that has not begun.
                lock.detach_unneeded(hierarchies_in_use(&maps)?, lock.watches())?;
                return Err(error);
            }
        };
        if is_loaded {
            reasons.extend(why_no_stronger);
        }
        let begun_ns = now();
        // Two guards never begin in the same ns under one lock.
        let id = begun_ns;
        let entry = Entry {
            begun_ns,
            allowed: wanted.allowed_bits(),
            levels: level::numbers(levels),
            missed_before,
            target: targets
                .iter()
                .flatten()
                .next()
                .map(Cgroup::key)
                .unwrap_or_default(),
            flags: wanted.owner.map_or(0, |_| Entry::BY_USER),
            owner_uid: wanted.owner.unwrap_or_default().into(),
            ..Entry::default()
        };
        // Enrolled before it is marked: from here on the guard ends with its holder
        // at the latest.
        match maps.begin(id, entry)? {
            control::DONE => {}
            answer => {
                lock.detach_unneeded(hierarchies_in_use(&maps)?, lock.watches())?;
                return Err(match answer {
                    control::OTHER_GUARD => Error::Nested,
                    _ => Error::Full("GUARDS"),
                });
            }
        }
        let mut guard = Self {
            id,
            targets,
            ancestors: None,
            froze: Vec::new(),
            found_frozen: Vec::new(),
            looked_at: false,
            levels,
            weak_because: reasons,
            maps,
            entered: false,
            ended: false,
        };
        if let Err(error) = guard.mark() {
            guard.release(&lock)?;
            return Err(error);
        }
        Ok(guard)
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
        self.maps.control(control::LEAVE, self.id, &[])?;
        let status = self.status();
        self.ended = true;
        status
    }

    fn mark(&mut self) -> Result<(), Error> {
        let mut above = Vec::new();
        for cgroup in self.targets.iter().flatten() {
            let ancestors = ancestors(cgroup)?;
            mark_target(&mut self.maps, cgroup, self.id)?;
            mark_ancestors(&mut self.maps, &ancestors, self.id)?;
            above.extend(ancestors);
        }
        self.ancestors = Some(above);
        // The kernel side marks what a checkpointer writes, and waits for no lock of
        // ours: it may be in the way by now.
        self.cgroups().for_each(Cgroup::settle);
        refuse_guarded(&self.maps, &self.targets, Some(self.id))?;
        for cgroup in self.targets.iter().flatten() {
            let key = cgroup.key();
            let target = [u64::from(key.hierarchy_id), key.kernfs_id];
            self.maps.control(control::MARKED, self.id, &target)?;
        }
        Ok(())
    }

    fn entry(&self) -> Result<Entry, Error> {
        let entry = self.maps.guard(self.id)?;
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
        self.cgroups().for_each(Cgroup::settle);
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
    /// those of the tree below `root`, or else, of each process that is there,
    /// all threads. What is checked after the mark cannot change unnoticed.
    ///
    /// # Errors
    /// When one is elsewhere, or is being traced.
    pub fn verify(&self, root: Option<i32>) -> Result<Report, Error> {
        verify(&self.cgroups().collect::<Vec<_>>(), root)
    }

    /// Enters CHECKPOINTING, unless something was done to the targets since
    /// `before`: then it returns what is known of that, which may be nothing, and
    /// the targets have to be looked at again. `None`: it is CHECKPOINTING.
    ///
    /// # Errors
    /// When the guard was ended by somebody, or tasks were killed meanwhile.
    pub fn checkpointing(&mut self, before: Before) -> Result<Option<Vec<Deed>>, Error> {
        match self
            .maps
            .control(control::CHECKPOINTING, self.id, &before.0)?
        {
            control::DONE => {
                self.entered = true;
                Ok(None)
            }
            control::DISTURBED => {
                let entry = self.entry()?;
                let deeds = status(&self.maps, self.id, &entry)?.repaired_deeds();
                let kill = Protection::Kill as usize;
                if entry.disturbances[kill] != before.0[kill] {
                    return Err(self.disturbed(&deeds));
                }
                Ok(Some(deeds))
            }
            _ => Err(Error::WasGone(self.path())),
        }
    }

    /// The error for one that cannot be set up for all that is done to it.
    pub fn disturbed(&self, deeds: &[Deed]) -> Error {
        Error::Disturbed {
            path: self.path(),
            deeds: deeds.iter().map(Deed::to_string).collect(),
        }
    }

    /// What it did so far.
    ///
    /// # Errors
    /// When somebody has ended it.
    pub fn status(&self) -> Result<Status, Error> {
        let entry = self.entry()?;
        let targets = self.cgroups().map(Cgroup::key).collect();
        Seen::of_one(&self.maps, self.id, &entry, targets)?.status(&self.maps, self.id, &entry)
    }

    /// How many violations have been counted.
    ///
    /// # Errors
    /// When the map cannot be read. A guard that is gone has none.
    pub fn violations(&self) -> Result<u64, Error> {
        let entry = self.maps.guard(self.id)?;
        Ok(entry.map_or(0, |entry| entry.violations().iter().sum()))
    }

    /// See [`Status::missed`].
    ///
    /// # Errors
    /// When the kernel does not tell. A guard that is gone has none.
    pub fn missed(&self) -> Result<u64, Error> {
        match self.maps.guard(self.id)? {
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
        let restored = self.restore();
        let lock = Locked::wait()?;
        // The pinned maps are others than ours if somebody has ended this guard
        // and the next one was loaded anew.
        let Some(mut maps) = lock.open()? else {
            return Ok(None);
        };
        // The kernel side counts a write a moment after it, and this one has to count.
        self.cgroups().for_each(Cgroup::settle);
        let end = release(&mut maps, self.id, self.marks(), restored.is_ok())?;
        detach_idle(&lock, &maps)?;
        match (end, restored) {
            (Some(status), Err(error)) if status.violation_count() == 0 => Err(error),
            (end, _) => Ok(end),
        }
    }

    fn marks(&self) -> Marks {
        Marks {
            targets: self.cgroups().map(Cgroup::key).collect(),
            ancestors: self.ancestors.clone(),
            is_own: true,
        }
    }

    /// Ends one that has not frozen anything yet.
    fn release(&mut self, lock: &Locked) -> Result<(), Error> {
        self.ended = true;
        let marks = self.marks();
        release(&mut self.maps, self.id, marks, true)?;
        detach_idle(lock, &self.maps)
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

/// `CLOCK_BOOTTIME`, ns: the clock of the BPF side.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
