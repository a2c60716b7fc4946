//! Guards in the maps: who is in the way, what an end or a crash has left.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError},
};
use freezer_guard_ebpf::{AncestorKey, CgroupKey, Guard as Entry, GuardId, MAX_GUARDS, control};

use super::{
    Error, Status, Target,
    status::{holder_pids, paths, status},
};
use crate::{
    cgroup::Cgroup,
    kernel::{self, Hierarchies, Locked, Maps, daemon_runs},
    sys,
};

/// Flag of `bpf_map_update_elem`: fail if there is an entry.
const BPF_NOEXIST: u64 = 1;

pub(super) fn covering(maps: &Maps, cgroup: &Cgroup) -> Result<Option<GuardId>, Error> {
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

pub(super) fn refuse_overlap(targets: &[Target]) -> Result<(), Error> {
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

/// `own`: a guard that is not in the way.
pub(super) fn refuse_guarded(
    maps: &Maps,
    targets: &[Target],
    own: Option<GuardId>,
) -> Result<(), Error> {
    for cgroup in targets.iter().flatten() {
        let mut holder = covering(maps, cgroup)?.filter(|id| Some(*id) != own);
        let mut key = AncestorKey {
            cgroup: cgroup.key(),
            index: 0,
        };
        while holder.is_none() {
            let Ok(id) = maps.ancestors.get(&key, 0) else {
                break;
            };
            holder = maps.guard(id)?.map(|_| id).filter(|id| Some(*id) != own);
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

/// Removes the marks, then the entry: in between, nothing is denied any more
/// and the counters stand still.
/// `restored`: its targets are as they were found.
pub(super) fn release(
    maps: &mut Maps,
    id: GuardId,
    restored: bool,
) -> Result<Option<Status>, Error> {
    let Some(entry) = maps.guard(id)? else {
        reconcile(maps)?;
        return Ok(None);
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
    maps.control(control::END, id, &[restored.into()])?;
    if entry.members > 1 {
        // The element of the map is used again at once. A thread of the holder
        // that starts or ends just now must not count in the next guard.
        sys::wait_for_programs();
    }
    reconcile(maps)?;
    Ok(Some(status))
}

/// Makes the cgroup with this identity a target of the guard.
pub(super) fn place_target(maps: &mut Maps, key: CgroupKey, id: GuardId) -> Result<(), Error> {
    insert(&mut maps.targets, "TARGETS", key, id)
}

/// Makes the cgroup a target of the guard.
pub(super) fn mark_target(maps: &mut Maps, cgroup: &Cgroup, id: GuardId) -> Result<(), Error> {
    match maps.targets.insert(cgroup.key(), id, BPF_NOEXIST) {
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::EEXIST) => {
            // A checkpointer was faster that nobody had guarded.
            Err(Error::Guarded {
                path: cgroup.path().to_owned(),
                of: cgroup.path().to_owned(),
                pids: Vec::new(),
            })
        }
        result => inserted("TARGETS", result),
    }
}

/// Puts the guard into the list of each ancestor of its target, unless it is there.
pub(super) fn mark_ancestors(maps: &mut Maps, target: &Cgroup, id: GuardId) -> Result<(), Error> {
    let above = target.ancestors()?;
    let above = above.iter().map(Cgroup::key);
    for cgroup in above.chain([target.root_key()]) {
        mark_ancestor(maps, cgroup, id)?;
    }
    Ok(())
}

fn mark_ancestor(maps: &mut Maps, cgroup: CgroupKey, id: GuardId) -> Result<(), Error> {
    let mut free = None;
    for index in 0..u64::from(MAX_GUARDS) {
        let key = AncestorKey { cgroup, index };
        match maps.ancestors.get(&key, 0) {
            Ok(other) if other == id => return Ok(()),
            Ok(other) if maps.guard(other)?.is_some() => {}
            // What a dead guard has left is overwritten.
            Ok(_) => free = free.or(Some((key, 0))),
            // Here the list ends.
            Err(_) => {
                free = free.or(Some((key, BPF_NOEXIST)));
                break;
            }
        }
    }
    let (key, flags) = free.ok_or(Error::Full("ANCESTORS"))?;
    match maps.ancestors.insert(key, id, flags) {
        // The kernel side has put another one there just now.
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::EEXIST) => {
            mark_ancestor(maps, cgroup, id)
        }
        result => inserted("ANCESTORS", result),
    }
}

/// Removes what ended guards and crashed beginners have left. Marks of the
/// living are never missing in between.
pub(super) fn reconcile(maps: &mut Maps) -> Result<(), Error> {
    if !daemon_runs() {
        // Nobody asks what became of them.
        for (id, entry) in entries(&maps.ended)? {
            if entry.leader == 0 {
                remove(&mut maps.ended, "ENDED", &id)?;
            }
        }
    }
    for (id, entry) in entries(&maps.guards)? {
        if entry.members > 0 {
            continue;
        }
        // Its beginner died between the entry and its own enrolment: only we
        // hold the lock, so nobody is there now.
        if entry.flags & (Entry::HELD | Entry::OVER) == Entry::HELD {
            maps.control(control::END, id, &[])?;
        } else {
            remove(&mut maps.guards, "GUARDS", &id)?;
        }
    }
    for (key, id) in entries(&maps.targets)? {
        // The kernel side may have put another one there meanwhile.
        if maps.guard(id)?.is_none() && maps.targets.get(&key, 0).is_ok_and(|now| now == id) {
            remove(&mut maps.targets, "TARGETS", &key)?;
        }
    }
    let is_over = |maps: &Maps, id| -> Result<bool, Error> {
        Ok(maps.guard(id)?.is_none() && maps.ended.get(&id, 0).is_err())
    };
    for (key, _) in entries(&maps.intruders)? {
        if is_over(maps, key.guard)? {
            remove(&mut maps.intruders, "INTRUDERS", &key)?;
        }
    }
    for (key, _) in entries(&maps.violators)? {
        if is_over(maps, key.guard)? {
            remove(&mut maps.violators, "VIOLATORS", &key)?;
        }
    }
    let mut lists: BTreeMap<CgroupKey, BTreeMap<u64, GuardId>> = BTreeMap::new();
    for (key, id) in entries(&maps.ancestors)? {
        lists.entry(key.cgroup).or_default().insert(key.index, id);
    }
    for (cgroup, list) in lists {
        // Only from the end: a walker in the kernel must meet every living one,
        // and stops at the first gap. `mark` uses the dead places in between.
        for (index, id) in list.iter().rev() {
            if maps.guard(*id)?.is_some() {
                break;
            }
            let key = AncestorKey {
                cgroup,
                index: *index,
            };
            remove(&mut maps.ancestors, "ANCESTORS", &key)?;
        }
    }
    Ok(())
}

/// The hierarchies that the guards in force have targets in.
pub(super) fn hierarchies(maps: &Maps) -> Result<Hierarchies, Error> {
    let mut found = Hierarchies::default();
    for (key, _) in entries(&maps.targets)? {
        match key.hierarchy_id {
            0 => found.v2 = true,
            _ => found.v1 = true,
        }
    }
    Ok(found)
}

/// Whether no guard is in force.
pub(super) fn is_idle(maps: &Maps) -> Result<bool, Error> {
    Ok(in_force(maps)?.is_empty())
}

/// Every guard in force.
pub(super) fn in_force(maps: &Maps) -> Result<Vec<(GuardId, Entry)>, Error> {
    let mut guards = entries(&maps.guards)?;
    guards.retain(|(_, entry)| !entry.is_candidate() && entry.flags & Entry::OVER == 0);
    Ok(guards)
}

/// Detaches what no guard needs; without any guard, everything. Where a daemon
/// runs that is left to it, for the next guard may begin at once.
pub(super) fn tidy(lock: &Locked, maps: &Maps) -> Result<(), Error> {
    if daemon_runs() {
        return Ok(());
    }
    // The daemon may have crashed, and come back: it is left what it watches.
    let watch = !entries(&maps.guards)?.is_empty() || !entries(&maps.ended)?.is_empty();
    if is_idle(maps)? && !watch {
        lock.unload()?;
    } else {
        lock.detach_unneeded(hierarchies(maps)?, watch && lock.watches())?;
    }
    Ok(())
}

pub(super) fn entries<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>, Error> {
    // Entries may come and go while we read: what is gone is left out.
    Ok(map.iter().filter_map(Result::ok).collect())
}

pub(super) fn insert<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: K,
    value: V,
) -> Result<(), Error> {
    inserted(name, map.insert(key, value, BPF_NOEXIST))
}

fn inserted(name: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    result.map_err(|error| match &error {
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => {
            Error::Full(name)
        }
        _ => map_error(name)(error),
    })
}

/// The kernel may have been faster: an entry that is not there is removed.
pub(super) fn remove<K: Pod, V: Pod>(
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
