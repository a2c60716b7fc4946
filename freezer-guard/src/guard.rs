//! The state machine of a guard: begin, freeze, CHECKPOINTING, end. The only
//! place that changes a guard's state.

mod checks;
mod deed;
mod error;
mod marks;
mod status;

use std::{io, path::PathBuf};

use freezer_guard_ebpf::{
    AncestorKey, CgroupKey, Guard as Entry, GuardId, MAX_GUARDS, Protection, control,
};
use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid},
};

pub use checks::verify;
pub use deed::{Deed, Outcome, path, wall_clock};
pub use error::Error;
pub use status::{Status, list, of_cgroup};

use crate::{
    cgroup::{self, Cgroup, Report},
    kernel::{Locked, Maps, Reader},
    sys,
};
use checks::{is_frozen, refuse_frozen_around};
use marks::{covering, insert, place, reconcile, refuse_guarded, refuse_overlap, tidy};
use status::{holder_pids, status};

/// A container as it is seen in the hierarchies it is in: v1 first.
pub type Target = Vec<Cgroup>;

/// A guard that this process holds. Dropping it ends it.
#[derive(Debug)]
pub struct Guard {
    id: GuardId,
    targets: Vec<Target>,
    /// Those that we froze.
    froze: Vec<CgroupKey>,
    /// Those that were frozen before.
    found_frozen: Vec<CgroupKey>,
    /// Whether the freezers have been looked at once.
    looked_at: bool,
    maps: Maps,
    entered: bool,
    ended: bool,
}

/// The disturbances that were counted before something was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before([u64; Protection::COUNT]);

impl Guard {
    /// Marks the targets and makes this process the holder. It must have one
    /// thread only, and no child that should be outside. `allowed`: the
    /// protections that are lifted.
    ///
    /// # Errors
    /// When another guard is in the way or the kernel cannot enforce this one.
    pub fn begin(targets: Vec<Target>, allowed: &[Protection]) -> Result<Self, Error> {
        if !sys::is_initial_pid_namespace() {
            return Err(Error::PidNamespace);
        }
        let lock = Locked::wait()?;
        let mut maps = match lock.open()? {
            Some(mut maps) => {
                reconcile(&mut maps)?;
                maps
            }
            None => {
                refuse_overlap(&targets)?;
                lock.load()?
            }
        };
        refuse_overlap(&targets)?;
        refuse_guarded(&maps, &targets)?;
        // A guard may have ended since: its marks would be in our way.
        reconcile(&mut maps)?;
        let mut hierarchies = marks::hierarchies(&maps)?;
        for cgroup in targets.iter().flatten() {
            match cgroup.version() {
                cgroup::Version::V1 => hierarchies.v1 = true,
                cgroup::Version::V2 => hierarchies.v2 = true,
            }
        }
        if let Err(error) = lock.attach(hierarchies) {
            tidy(&lock, &maps)?;
            return Err(error.into());
        }
        let begun_ns = now();
        // Two guards never begin in the same ns under one lock.
        let id = begun_ns;
        insert(
            &mut maps.guards,
            "GUARDS",
            id,
            Entry {
                begun_ns,
                allowed: allowed
                    .iter()
                    .fold(0, |bits, protection| bits | 1 << *protection as u64),
                ..Entry::default()
            },
        )?;
        let mut guard = Self {
            id,
            targets,
            froze: Vec::new(),
            found_frozen: Vec::new(),
            looked_at: false,
            maps,
            entered: false,
            ended: false,
        };
        // Enrolled before it is marked: from here on the guard ends with us at
        // the latest, and a crash before leaves an entry that denies nothing.
        match guard.maps.control(control::ENROL, id, &[]) {
            Ok(control::DONE) => {}
            Err(error) => {
                guard.release(&lock)?;
                return Err(error.into());
            }
            Ok(control::OTHER_GUARD) => {
                guard.release(&lock)?;
                return Err(Error::Nested);
            }
            _ => {
                guard.release(&lock)?;
                return Err(Error::Full("MEMBERS"));
            }
        }
        if let Err(error) = guard.mark() {
            guard.release(&lock)?;
            return Err(error);
        }
        Ok(guard)
    }

    fn mark(&mut self) -> Result<(), Error> {
        for cgroup in self.targets.iter().flatten() {
            insert(&mut self.maps.targets, "TARGETS", cgroup.key(), self.id)?;
            let above = cgroup.ancestors()?;
            let above = above.iter().map(Cgroup::key);
            for cgroup in above.chain([cgroup.root_key()]) {
                let mut key = AncestorKey { cgroup, index: 0 };
                while let Ok(id) = self.maps.ancestors.get(&key, 0)
                    && self.maps.guard(id)?.is_some()
                {
                    key.index += 1;
                }
                if key.index >= u64::from(MAX_GUARDS) {
                    return Err(Error::Full("ANCESTORS"));
                }
                place(&mut self.maps.ancestors, "ANCESTORS", key, self.id)?;
            }
        }
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

    /// Makes sure that every target is frozen or will be: freezes it if asked
    /// to, and when called again, freezes again what somebody has thawed.
    ///
    /// # Errors
    /// When a target is thawed and not to be frozen, or would not be thawed by
    /// the checkpointer's thaw.
    pub fn freeze(&mut self, if_thawed: bool) -> Result<(), Error> {
        let again = std::mem::replace(&mut self.looked_at, true);
        for target in &self.targets {
            for cgroup in target {
                refuse_frozen_around(cgroup)?;
            }
            if again {
                for cgroup in target {
                    let ours = self.froze.iter().chain(&self.found_frozen);
                    if ours.copied().any(|key| key == cgroup.key()) {
                        refreeze(cgroup)?;
                    }
                }
                continue;
            }
            let Some(first) = target.first() else {
                continue;
            };
            let mut frozen = false;
            for cgroup in target {
                if cgroup.is_self_frozen()? {
                    self.found_frozen.push(cgroup.key());
                    frozen = true;
                }
            }
            if !frozen && if_thawed {
                first.freeze()?;
                self.froze.push(first.key());
            } else if !frozen || (!if_thawed && !is_frozen(target)?) {
                let state = first.freezer_state()?;
                return Err(Error::NotFrozen {
                    path: first.path().to_owned(),
                    state,
                });
            }
        }
        Ok(())
    }

    /// The cgroups that are not frozen yet.
    ///
    /// # Errors
    /// When a state cannot be read.
    pub fn not_frozen(&self) -> Result<Vec<&Cgroup>, Error> {
        let mut pending = Vec::new();
        for target in &self.targets {
            if !is_frozen(target)? {
                pending.extend(target.first());
            }
        }
        Ok(pending)
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
        status(&self.maps, self.id, &self.entry()?)
    }

    /// How many violations have been counted.
    ///
    /// # Errors
    /// When the map cannot be read. A guard that is gone has none.
    pub fn violations(&self) -> Result<u64, Error> {
        let entry = self.maps.guard(self.id)?;
        Ok(entry.map_or(0, |entry| entry.violations().iter().sum()))
    }

    /// Its id.
    pub fn id(&self) -> GuardId {
        self.id
    }

    /// Every guarded cgroup.
    pub fn cgroups(&self) -> impl Iterator<Item = &Cgroup> {
        self.targets.iter().flatten()
    }

    /// Kills every process of the holder but this one.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn kill_holder(&self) -> Result<(), Error> {
        for pid in self.other_pids()? {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        Ok(())
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
        // What has been done is counted a moment later, and has to count.
        self.cgroups().for_each(Cgroup::settle);
        let end = marks::release(&mut maps, self.id)?;
        tidy(&lock, &maps)?;
        match (end, restored) {
            (Some(status), Err(error)) if status.violation_count() == 0 => Err(error),
            (end, _) => Ok(end),
        }
    }

    /// What we froze is thawed; what was found FROZEN is left FROZEN, also by a
    /// checkpointer that crashed.
    fn restore(&self) -> Result<(), Error> {
        // Ours no more: the kernel refuses it if somebody else guards it now.
        let mine = self.maps.guard(self.id)?.is_some();
        let mut result = Ok(());
        for cgroup in self.cgroups() {
            let restored = if self.froze.contains(&cgroup.key()) {
                cgroup.thaw()
            } else if mine && self.entered && self.found_frozen.contains(&cgroup.key()) {
                refreeze(cgroup)
            } else {
                Ok(())
            };
            match restored {
                // The checkpointer may have removed it together with its tasks.
                Err(cgroup::Error::Io { source, .. }) if is_gone(&source) => {}
                // One that cannot be restored is no reason to leave the others.
                restored => result = result.and(restored),
            }
        }
        Ok(result?)
    }

    /// Ends one that has not frozen anything yet.
    fn release(&mut self, lock: &Locked) -> Result<(), Error> {
        self.ended = true;
        marks::release(&mut self.maps, self.id)?;
        tidy(lock, &self.maps)
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

fn refreeze(cgroup: &Cgroup) -> Result<(), cgroup::Error> {
    if cgroup.is_self_frozen()? {
        return Ok(());
    }
    cgroup.freeze()
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Follows the events of all guards, those to come included; also returns the
/// guards in force when that began.
///
/// # Errors
/// When the kernel cannot be asked, or too many follow the events already.
pub fn follow() -> Result<(Reader, Vec<Status>), Error> {
    let lock = Locked::wait()?;
    let guards = status::list_locked(&lock)?;
    Ok((Reader::open(&lock)?, guards))
}

/// Ends the guard of a cgroup, whoever holds it. Its state is left as it is.
///
/// # Errors
/// When there is none.
pub fn end_by_force(cgroup: &Cgroup) -> Result<Status, Error> {
    let lock = Locked::wait()?;
    let not_guarded = || Error::NotGuarded(cgroup.path().to_owned());
    let mut maps = lock.open()?.ok_or_else(not_guarded)?;
    let id = covering(&maps, cgroup)?.ok_or_else(not_guarded)?;
    let end = marks::release(&mut maps, id)?;
    tidy(&lock, &maps)?;
    match end {
        Some(status) => Ok(status),
        None => Err(not_guarded()),
    }
}

/// `CLOCK_BOOTTIME`, ns: the clock of the BPF side.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
