//! The state machine of a guard: begin, freeze, CHECKPOINTING, end. The only
//! place that changes a guard's state.

mod marks;
mod status;

use std::{io, path::PathBuf};

use freezer_guard_ebpf::{AncestorKey, CgroupKey, Guard as Entry, GuardId, MAX_GUARDS, control};
use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid},
};

pub use status::{Intruder, Status, comm, list, of_cgroup};

use crate::{
    cgroup::{self, Cgroup, FreezerState},
    kernel::{self, Locked, Maps},
};
use marks::{covering, insert, place, reconcile, refuse_guarded, refuse_overlap, unload_if_unused};
use status::holder_pids;

/// Why a guard could not be begun or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// Another guard holds the cgroup, one above or one below it.
    #[error(
        "{} is busy: a guard holds {}{}; see `freezer-guard status`",
        path.display(), of.display(), holders(pids)
    )]
    Guarded {
        /// The cgroup that was asked for.
        path: PathBuf,
        /// The cgroup that is guarded.
        of: PathBuf,
        /// The processes of its holder.
        pids: Vec<u32>,
    },
    /// Two of the cgroups asked for overlap.
    #[error("{} is the same as {} or lies above it: name one of them", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    /// The caller holds another guard.
    #[error(
        "this process belongs to the holder of another guard: guard several cgroups with one `run --cgroup A --cgroup B`"
    )]
    Nested,
    /// The cgroup is not frozen and we were not asked to freeze it.
    #[error("{} is {state}, not FROZEN: freeze it first, or let --freeze do it", path.display())]
    NotFrozen {
        /// The cgroup.
        path: PathBuf,
        /// Its state.
        state: FreezerState,
    },
    /// An ancestor is frozen: CRIU would hang.
    #[error("{} is frozen, which holds {} frozen whatever the checkpointer does: thaw it first", ancestor.display(), path.display())]
    FrozenAncestor {
        /// The cgroup.
        path: PathBuf,
        /// The one above it.
        ancestor: PathBuf,
    },
    /// A descendant has a frozen freezer of its own: CRIU would hang.
    #[error("{} is frozen by itself, and would stay so when the checkpointer thaws {}: thaw it first", descendant.display(), path.display())]
    FrozenDescendant {
        /// The cgroup.
        path: PathBuf,
        /// The one below it.
        descendant: PathBuf,
    },
    /// Freezing it would freeze the caller.
    #[error("--freeze would freeze freezer-guard itself, which is in {}: run it from another cgroup", .0.display())]
    OwnCgroup(PathBuf),
    /// Too many guards, or threads of holders.
    #[error("the map {0} is full: too many guards at once")]
    Full(&'static str),
    /// Nobody guards it.
    #[error("{} is not guarded", .0.display())]
    NotGuarded(PathBuf),
}

fn holders(pids: &[u32]) -> String {
    match pids {
        [] => String::new(),
        [pid, ..] => format!(" for pid {pid}"),
    }
}

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
    maps: Maps,
    entered: bool,
    ended: bool,
}

/// How a guard ended.
#[derive(Debug)]
pub enum End {
    /// By us, after all this.
    Released(Status),
    /// It was gone: somebody ended it before.
    WasGone,
}

impl Guard {
    /// Marks the targets and makes this process the holder. It must have one
    /// thread only, and no child that should be outside.
    ///
    /// # Errors
    /// When another guard is in the way or the kernel cannot enforce this one.
    pub fn begin(targets: Vec<Target>) -> Result<Self, Error> {
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
        let begun_ns = now();
        // Two guards never begin in the same ns under one lock.
        let id = begun_ns;
        insert(
            &mut maps.guards,
            "GUARDS",
            id,
            Entry {
                begun_ns,
                ..Entry::default()
            },
        )?;
        let mut guard = Self {
            id,
            targets,
            froze: Vec::new(),
            found_frozen: Vec::new(),
            maps,
            entered: false,
            ended: false,
        };
        // Enrolled before it is marked: from here on the guard ends with us at
        // the latest, and a crash before leaves an entry that denies nothing.
        match guard.maps.control(control::ENROL, id) {
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
            for ancestor in cgroup.ancestors()? {
                let mut key = AncestorKey {
                    cgroup: ancestor.key(),
                    index: 0,
                };
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
        Ok(())
    }

    /// Makes sure that every target is frozen or will be: freezes it if asked
    /// to. What is checked here cannot change unnoticed: the marks are set.
    ///
    /// # Errors
    /// When a target is thawed and not to be frozen, or would not be thawed by
    /// the checkpointer's thaw.
    pub fn freeze(&mut self, if_thawed: bool) -> Result<(), Error> {
        for target in &self.targets {
            for cgroup in target {
                let path = || cgroup.path().to_owned();
                for ancestor in cgroup.ancestors()? {
                    if ancestor.is_self_frozen()? {
                        let ancestor = ancestor.path().to_owned();
                        return Err(Error::FrozenAncestor {
                            path: path(),
                            ancestor,
                        });
                    }
                }
                for descendant in cgroup.descendants()? {
                    if descendant.is_self_frozen()? {
                        let descendant = descendant.path().to_owned();
                        return Err(Error::FrozenDescendant {
                            path: path(),
                            descendant,
                        });
                    }
                }
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

    /// Enters CHECKPOINTING.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn checkpointing(&mut self) -> Result<(), Error> {
        self.maps.control(control::CHECKPOINTING, self.id)?;
        self.entered = true;
        Ok(())
    }

    /// Its id.
    pub fn id(&self) -> GuardId {
        self.id
    }

    /// The maps it lives in.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The path of a cgroup that was written to, for people to read.
    pub fn path_of(&self, key: CgroupKey) -> String {
        cgroup::by_key(key)
            .unwrap_or_default()
            .display()
            .to_string()
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

    /// Restores the state each target was found in, and ends the guard.
    ///
    /// # Errors
    /// When a cgroup cannot be restored; the guard has ended even so.
    pub fn end(mut self) -> Result<End, Error> {
        let restored = self.restore();
        let lock = Locked::wait()?;
        match self.release(&lock)? {
            // The cgroup may belong to another guard by now.
            End::WasGone => Ok(End::WasGone),
            released => restored.map(|()| released),
        }
    }

    /// What we froze is thawed; what was found FROZEN is left FROZEN, also by a
    /// checkpointer that crashed.
    fn restore(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for cgroup in self.cgroups() {
            let restored = if self.froze.contains(&cgroup.key()) {
                cgroup.thaw()
            } else if self.entered && self.found_frozen.contains(&cgroup.key()) {
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

    /// Ends it, in the maps that are pinned now: they are others than ours if
    /// somebody has ended this guard and the next one was loaded anew.
    fn release(&mut self, lock: &Locked) -> Result<End, Error> {
        self.ended = true;
        let Some(mut maps) = lock.open()? else {
            return Ok(End::WasGone);
        };
        let end = marks::release(&mut maps, self.id)?;
        unload_if_unused(lock, &maps)?;
        Ok(end)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            // On the way out of an error, which is what gets reported. If this
            // fails too, the guard still ends with this process.
            let _ = self.restore();
            if let Ok(lock) = Locked::wait() {
                let _ = self.release(&lock);
            }
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

fn is_frozen(target: &[Cgroup]) -> Result<bool, cgroup::Error> {
    for cgroup in target {
        if cgroup.freezer_state()? == FreezerState::Frozen {
            return Ok(true);
        }
    }
    Ok(false)
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
    unload_if_unused(&lock, &maps)?;
    match end {
        End::Released(status) => Ok(status),
        End::WasGone => Err(not_guarded()),
    }
}

/// `CLOCK_BOOTTIME`, ns: the clock of the BPF side.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
