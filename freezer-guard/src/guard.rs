//! The state machine of a guard: begin, freeze, CHECKPOINTING, end. The only
//! place that changes a guard's state.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use aya::maps::{HashMap, MapData, MapError};
use freezer_guard_ebpf::{
    AncestorKey, CgroupKey, Guard as Entry, GuardId, MAX_GUARDS, Protection, control,
};
use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid},
};

use crate::{
    cgroup::{self, Cgroup, FreezerState},
    kernel::{self, Locked, Maps},
};

/// Flag of `bpf_map_update_elem`: fail if there is an entry.
const BPF_NOEXIST: u64 = 1;

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
    /// Those that we froze, by their place in `targets`.
    froze: Vec<usize>,
    maps: Maps,
    entered: bool,
    ended: bool,
}

/// What a guard did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Status {
    /// Its id.
    pub id: GuardId,
    /// CHECKPOINTING, or PREPARING while it is being begun.
    pub state: &'static str,
    /// The guarded cgroups; one that is gone is shown by its identity.
    pub cgroups: Vec<PathBuf>,
    /// The processes that may write.
    pub holder_pids: Vec<u32>,
    /// How long it has been held, seconds.
    pub held_seconds: f64,
    /// Refused writes by [`Protection`].
    pub denials: BTreeMap<&'static str, u64>,
    /// Who wrote, the most eager first. May be incomplete: `denials` is not.
    pub intruders: Vec<Intruder>,
    /// Refusals that were counted but did not fit among the events.
    pub lost_events: u64,
}

/// Somebody who ran into a guard.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Intruder {
    /// The process.
    pub pid: u32,
    /// Its name at the first write.
    pub comm: String,
    /// What it tried, a name of [`Protection`].
    pub protection: &'static str,
    /// How often.
    pub count: u64,
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
            maps,
            entered: false,
            ended: false,
        };
        // Enrolled before it is marked: from here on the guard ends with us at
        // the latest, and a crash before leaves an entry that denies nothing.
        match guard.maps.control(control::ENROL, id)? {
            control::DONE => {}
            control::OTHER_GUARD => {
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
                while self.maps.ancestors.get(&key, 0).is_ok() {
                    key.index += 1;
                }
                if key.index >= u64::from(MAX_GUARDS) {
                    return Err(Error::Full("ANCESTORS"));
                }
                insert(&mut self.maps.ancestors, "ANCESTORS", key, self.id)?;
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
        for (number, target) in self.targets.iter().enumerate() {
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
                frozen |= cgroup.is_self_frozen()?;
            }
            if !frozen && if_thawed {
                first.freeze()?;
                self.froze.push(number);
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

    fn restore(&self) -> Result<(), Error> {
        for (number, target) in self.targets.iter().enumerate() {
            let Some(first) = target.first() else {
                continue;
            };
            let restored = if self.froze.contains(&number) {
                first.thaw()
            } else if self.entered {
                leave_frozen(target)
            } else {
                Ok(())
            };
            match restored {
                // The checkpointer may have removed it together with its tasks.
                Err(cgroup::Error::Io { source, .. }) if is_gone(&source) => {}
                restored => restored?,
            }
        }
        Ok(())
    }

    /// Ends it, in the maps that are pinned now: they are others than ours if
    /// somebody has ended this guard and the next one was loaded anew.
    fn release(&mut self, lock: &Locked) -> Result<End, Error> {
        self.ended = true;
        let Some(mut maps) = lock.open()? else {
            return Ok(End::WasGone);
        };
        let end = release(&mut maps, self.id)?;
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

/// A target found FROZEN is left FROZEN, also by a checkpointer that crashed.
fn leave_frozen(target: &[Cgroup]) -> Result<(), cgroup::Error> {
    for cgroup in target {
        if cgroup.is_self_frozen()? {
            return Ok(());
        }
    }
    match target.first() {
        Some(first) => first.freeze(),
        None => Ok(()),
    }
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

/// Every guard in force.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list() -> Result<Vec<Status>, Error> {
    let lock = Locked::wait()?;
    let Some(mut maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    reconcile(&mut maps)?;
    unload_if_unused(&lock, &maps)?;
    let mut guards = Vec::new();
    for (id, entry) in entries(&maps.guards)? {
        guards.push(status(&maps, id, &entry)?);
    }
    guards.sort_by_key(|status| status.id);
    Ok(guards)
}

/// The guard that holds the cgroup or one above it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn of_cgroup(cgroup: &Cgroup) -> Result<Option<Status>, Error> {
    let lock = Locked::wait()?;
    let Some(maps) = lock.open()? else {
        return Ok(None);
    };
    let Some(id) = covering(&maps, cgroup)? else {
        return Ok(None);
    };
    match maps.guard(id)? {
        Some(entry) => Ok(Some(status(&maps, id, &entry)?)),
        None => Ok(None),
    }
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
    let end = release(&mut maps, id)?;
    unload_if_unused(&lock, &maps)?;
    match end {
        End::Released(status) => Ok(status),
        End::WasGone => Err(not_guarded()),
    }
}

fn covering(maps: &Maps, cgroup: &Cgroup) -> Result<Option<GuardId>, Error> {
    let above = cgroup.ancestors()?;
    for key in std::iter::once(cgroup.key()).chain(above.iter().map(Cgroup::key)) {
        if let Some(id) = live(maps, maps.targets.get(&key, 0))? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The id a mark names, if that guard is in force.
fn live(maps: &Maps, mark: Result<GuardId, MapError>) -> Result<Option<GuardId>, Error> {
    match mark {
        Ok(id) => Ok(maps.guard(id)?.map(|_| id)),
        Err(_) => Ok(None),
    }
}

fn refuse_overlap(targets: &[Target]) -> Result<(), Error> {
    let cgroups: Vec<_> = targets.iter().flatten().collect();
    for (number, one) in cgroups.iter().enumerate() {
        let above = one.ancestors()?;
        for (other_number, other) in cgroups.iter().enumerate() {
            let same = number < other_number && one.key() == other.key();
            if same || above.iter().any(|ancestor| ancestor.key() == other.key()) {
                return Err(Error::Overlap(
                    other.path().to_owned(),
                    one.path().to_owned(),
                ));
            }
        }
    }
    Ok(())
}

fn refuse_guarded(maps: &Maps, targets: &[Target]) -> Result<(), Error> {
    for cgroup in targets.iter().flatten() {
        let mut holder = covering(maps, cgroup)?;
        let mut key = AncestorKey {
            cgroup: cgroup.key(),
            index: 0,
        };
        while holder.is_none() {
            let Ok(id) = maps.ancestors.get(&key, 0) else {
                break;
            };
            holder = maps.guard(id)?.map(|_| id);
            key.index += 1;
        }
        if let Some(id) = holder {
            let of = paths(maps, id)?.into_iter().next().unwrap_or_default();
            let pids = holder_pids(maps, id)?;
            return Err(Error::Guarded {
                path: cgroup.path().to_owned(),
                of,
                pids,
            });
        }
    }
    Ok(())
}

fn status(maps: &Maps, id: GuardId, entry: &Entry) -> Result<Status, Error> {
    let mut intruders: Vec<_> = entries(&maps.intruders)?
        .into_iter()
        .filter(|(key, _)| key.guard == id)
        .map(|(key, intruder)| Intruder {
            pid: key.pid,
            comm: comm(&intruder.comm),
            protection: Protection::ALL
                .get(key.protection as usize)
                .map_or("unknown", |protection| protection.name()),
            count: intruder.count,
        })
        .collect();
    intruders.sort_by_key(|intruder| std::cmp::Reverse(intruder.count));
    let held = Duration::from_nanos(now().saturating_sub(entry.begun_ns));
    Ok(Status {
        id,
        state: if entry.checkpointing_ns == 0 {
            "PREPARING"
        } else {
            "CHECKPOINTING"
        },
        cgroups: paths(maps, id)?,
        holder_pids: holder_pids(maps, id)?,
        held_seconds: held.as_secs_f64(),
        denials: Protection::ALL
            .into_iter()
            .map(|protection| (protection.name(), entry.denials[protection as usize]))
            .collect(),
        intruders,
        lost_events: entry.lost_events,
    })
}

/// A NUL-padded name of a task.
pub fn comm(bytes: &[u8; 16]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn paths(maps: &Maps, id: GuardId) -> Result<Vec<PathBuf>, Error> {
    let mut keys: Vec<CgroupKey> = entries(&maps.targets)?
        .into_iter()
        .filter(|(_, of)| *of == id)
        .map(|(key, _)| key)
        .collect();
    keys.sort();
    let unknown =
        |key: CgroupKey| format!("(removed cgroup {}:{})", key.hierarchy_id, key.kernfs_id).into();
    Ok(keys
        .into_iter()
        .map(|key| cgroup::by_key(key).unwrap_or_else(|| unknown(key)))
        .collect())
}

fn holder_pids(maps: &Maps, id: GuardId) -> Result<Vec<u32>, Error> {
    let mut pids: Vec<_> = maps
        .members(id)?
        .into_iter()
        .map(|member| member.pid)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Removes the marks, then the entry: in between, nothing is denied any more
/// and the counters stand still.
fn release(maps: &mut Maps, id: GuardId) -> Result<End, Error> {
    let Some(entry) = maps.guard(id)? else {
        reconcile(maps)?;
        return Ok(End::WasGone);
    };
    let paths = paths(maps, id)?;
    for (key, of) in entries(&maps.targets)? {
        if of == id {
            remove(&mut maps.targets, "TARGETS", &key)?;
        }
    }
    let entry = maps.guard(id)?.unwrap_or(entry);
    let status = Status {
        cgroups: paths,
        ..status(maps, id, &entry)?
    };
    remove(&mut maps.guards, "GUARDS", &id)?;
    reconcile(maps)?;
    Ok(End::Released(status))
}

/// Removes what ended guards and crashed beginners have left. Marks of the
/// living are never missing in between.
fn reconcile(maps: &mut Maps) -> Result<(), Error> {
    for (id, entry) in entries(&maps.guards)? {
        // Its beginner died between the entry and its own enrolment: only we
        // hold the lock, so nobody is there now.
        if entry.members == 0 {
            remove(&mut maps.guards, "GUARDS", &id)?;
        }
    }
    for (key, id) in entries(&maps.targets)? {
        if maps.guard(id)?.is_none() {
            remove(&mut maps.targets, "TARGETS", &key)?;
        }
    }
    for (key, _) in entries(&maps.intruders)? {
        if maps.guard(key.guard)?.is_none() {
            remove(&mut maps.intruders, "INTRUDERS", &key)?;
        }
    }
    let mut lists: BTreeMap<CgroupKey, BTreeMap<u64, GuardId>> = BTreeMap::new();
    for (key, id) in entries(&maps.ancestors)? {
        lists.entry(key.cgroup).or_default().insert(key.index, id);
    }
    for (cgroup, list) in lists {
        let mut living = Vec::new();
        for id in list.values() {
            if maps.guard(*id)?.is_some() {
                living.push(*id);
            }
        }
        // Closing the gaps from below moves every living one before its old
        // place is overwritten or, from above, removed.
        for (index, id) in living.iter().enumerate() {
            let key = AncestorKey {
                cgroup,
                index: index as u64,
            };
            maps.ancestors
                .insert(key, id, 0)
                .map_err(map_error("ANCESTORS"))?;
        }
        for index in list
            .keys()
            .rev()
            .take_while(|index| **index >= living.len() as u64)
        {
            remove(
                &mut maps.ancestors,
                "ANCESTORS",
                &AncestorKey {
                    cgroup,
                    index: *index,
                },
            )?;
        }
    }
    Ok(())
}

fn unload_if_unused(lock: &Locked, maps: &Maps) -> Result<(), Error> {
    if entries(&maps.guards)?.is_empty() {
        lock.unload()?;
    }
    Ok(())
}

fn entries<K: aya::Pod, V: aya::Pod>(map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>, Error> {
    // Entries may come and go while we read: what is gone is left out.
    Ok(map.iter().filter_map(Result::ok).collect())
}

fn insert<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: K,
    value: V,
) -> Result<(), Error> {
    map.insert(key, value, BPF_NOEXIST)
        .map_err(|error| match &error {
            MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => {
                Error::Full(name)
            }
            _ => map_error(name)(error),
        })
}

/// The kernel may have been faster: an entry that is not there is removed.
fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
) -> Result<(), Error> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(())
        }
        Err(error) => Err(map_error(name)(error)),
    }
}

fn map_error(name: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| {
        kernel::Error::Failed {
            operation: format!("change the map {name}"),
            source: source.into(),
        }
        .into()
    }
}

/// `CLOCK_BOOTTIME`, ns: the clock of the BPF side.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
