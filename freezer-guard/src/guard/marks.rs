//! Guards in the maps: who is in the way, what an end or a crash has left.

use std::collections::{BTreeMap, BTreeSet};

use aya::{Pod, maps::MapError};
use freezer_guard_ebpf::{AncestorKey, CgroupKey, Guard as Entry, GuardId, Protection, control};

use super::{
    Error, Status, Target,
    others::restore_targets,
    status::{Seen, holder_pids, targets as targets_of},
};
use crate::{
    cgroup::{self, Cgroup},
    kernel::{self, Hierarchies, Locked, Maps, Table, daemon_runs},
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
    let Some((cgroup, id)) = in_the_way(maps, targets, own)? else {
        return Ok(());
    };
    let first = targets_of(maps, id)?.into_iter().next();
    let of = first.map(|key| super::path(key).into()).unwrap_or_default();
    Err(Error::Guarded {
        path: cgroup.path().to_owned(),
        of,
        pids: holder_pids(maps, id)?,
    })
}

/// Ends the guards of users that are in the way of one of the host's root: a user cannot keep
/// root from a checkpoint.
pub(super) fn displace_users(maps: &mut Maps, targets: &[Target]) -> Result<(), Error> {
    while let Some((_, id)) = in_the_way(maps, targets, None)? {
        let is_by_user = |entry: Entry| entry.flags & Entry::BY_USER != 0;
        if !maps.guard(id)?.is_some_and(is_by_user) {
            break;
        }
        // One that cannot be thawed is told when it is to be frozen.
        let restored = restore_targets(maps, id);
        let marks = Marks::of(maps, id)?;
        release(maps, id, marks, restored.is_ok())?;
    }
    Ok(())
}

/// Another guard than `own` on one of the targets, above it or below it.
fn in_the_way<'a>(
    maps: &Maps,
    targets: &'a [Target],
    own: Option<GuardId>,
) -> Result<Option<(&'a Cgroup, GuardId)>, Error> {
    for cgroup in targets.iter().flatten() {
        let on_or_above = covering(maps, cgroup)?.filter(|id| Some(*id) != own);
        let found = match on_or_above {
            None => below(maps, cgroup.key(), own)?,
            found => found,
        };
        if let Some(id) = found {
            return Ok(Some((cgroup, id)));
        }
    }
    Ok(None)
}

/// A guard below the cgroup that is in force.
fn below(maps: &Maps, cgroup: CgroupKey, own: Option<GuardId>) -> Result<Option<GuardId>, Error> {
    let last = maps
        .ancestors
        .get(&AncestorKey::new(cgroup, AncestorKey::ANY), 0);
    if last.is_err() {
        return Ok(None);
    }
    if let Some(id) = live(maps, last)?.filter(|id| Some(*id) != own) {
        return Ok(Some(id));
    }
    for (key, id) in maps.ancestors.entries()? {
        if key.cgroup == cgroup && Some(id) != own && maps.guard(id)?.is_some() {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Where a guard is marked.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) targets: Vec<CgroupKey>,
    /// `None`: it is not known.
    pub(super) ancestors: Option<Vec<CgroupKey>>,
    /// Whether the calling thread belongs to the holder.
    pub(super) is_own: bool,
}

impl Marks {
    /// Of a guard that somebody else has begun.
    pub(super) fn of(maps: &Maps, id: GuardId) -> Result<Self, Error> {
        let targets = targets_of(maps, id)?;
        let above = |key: &CgroupKey| {
            let cgroup = Cgroup::open(&cgroup::by_key(*key)?).ok()?;
            ancestors(&cgroup).ok()
        };
        let ancestors: Option<Vec<_>> = targets.iter().map(above).collect();
        Ok(Self {
            targets,
            ancestors: ancestors.map(|ancestors| ancestors.concat()),
            is_own: false,
        })
    }
}

/// Removes the marks, then the entry: in between, nothing is denied any more
/// and the counters stand still.
/// `restored`: its targets are as they were found.
pub(super) fn release(
    maps: &mut Maps,
    id: GuardId,
    marks: Marks,
    restored: bool,
) -> Result<Option<Status>, Error> {
    let Some(entry) = maps.guard(id)? else {
        reconcile(maps)?;
        return Ok(None);
    };
    for key in &marks.targets {
        if maps.targets.get(key, 0).is_ok_and(|of| of == id) {
            remove(&mut maps.targets, "TARGETS", key)?;
        }
    }
    for cgroup in marks.ancestors.iter().flatten() {
        let key = AncestorKey::new(*cgroup, id);
        if maps.ancestors.get(&key, 0).is_ok_and(|of| of == id) {
            remove(&mut maps.ancestors, "ANCESTORS", &key)?;
        }
    }
    let entry = maps.guard(id)?.unwrap_or(entry);
    let seen = match marks.is_own && entry.members == 1 {
        true => Seen::of_own(maps, id, &entry, marks.targets)?,
        false => Seen::of_one(maps, id, &entry, marks.targets)?,
    };
    let status = seen.status(maps, id, &entry)?;
    // A checkpointer may have written another freezer just now.
    let are_left = marks.ancestors.is_none() || entry.leader != 0;
    maps.control(control::END, id, &[restored.into(), are_left.into()])?;
    if entry.leader == 0 && !daemon_runs() {
        // Nobody asks what became of it.
        remove(&mut maps.ended, "ENDED", &id)?;
        forget(maps, [(id, entry)])?;
    }
    if entry.members > 1 || !marks.is_own {
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
    let key = cgroup.key();
    let marked = maps.targets.get(&key, 0);
    if marked.is_ok() && live(maps, marked)?.is_none() {
        // A guard has just ended, and its mark was not looked for yet.
        remove(&mut maps.targets, "TARGETS", &key)?;
    }
    match maps.targets.insert(key, id, BPF_NOEXIST) {
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

/// The cgroups above a target, the root included, which needs no path.
pub(super) fn ancestors(target: &Cgroup) -> Result<Vec<CgroupKey>, Error> {
    let above = target.ancestors()?;
    let above = above.iter().map(Cgroup::key);
    Ok(above.chain([target.root_key()]).collect())
}

/// Marks the ancestors of a target of the guard.
pub(super) fn mark_ancestors(
    maps: &mut Maps,
    ancestors: &[CgroupKey],
    id: GuardId,
) -> Result<(), Error> {
    for cgroup in ancestors {
        for guard in [id, AncestorKey::ANY] {
            // What a guard that has ended left there is overwritten.
            let marked = maps
                .ancestors
                .insert(AncestorKey::new(*cgroup, guard), id, 0);
            inserted("ANCESTORS", marked)?;
        }
    }
    Ok(())
}

/// Removes what guards have left that were ended by the kernel side, if there is any.
pub(super) fn reconcile(maps: &mut Maps) -> Result<(), Error> {
    drop_ended(maps)?;
    let stale = maps.control(control::STALE, 0, &[])?;
    if stale == 0 {
        return Ok(());
    }
    sweep(maps)?;
    maps.control(control::SWEPT, stale.into(), &[])?;
    Ok(())
}

/// Without a daemon nobody asks what became of guards that somebody had asked for.
fn drop_ended(maps: &mut Maps) -> Result<(), Error> {
    if maps.ended.keys().next().is_none() || daemon_runs() {
        return Ok(());
    }
    for (id, entry) in maps.ended.entries()? {
        if entry.leader == 0 {
            remove(&mut maps.ended, "ENDED", &id)?;
        }
    }
    Ok(())
}

/// Removes everything that no guard needs. Marks of the living are never missing in
/// between.
pub(super) fn sweep(maps: &mut Maps) -> Result<(), Error> {
    drop_ended(maps)?;
    let guards = maps.guards.entries()?;
    // Whoever is just ending a guard shall be through with it: what it has not taken away
    // by then, nobody does.
    sys::wait_for_programs();
    for (id, entry) in &guards {
        if !entry.is_in_force() && entry.members == 0 {
            remove(&mut maps.guards, "GUARDS", id)?;
        }
    }
    let known: BTreeSet<_> = guards
        .into_iter()
        .filter(|(_, entry)| entry.is_in_force())
        .map(|(id, _)| id)
        .collect();
    // One may have begun since.
    let is_dead = |maps: &Maps, id| -> Result<bool, Error> {
        Ok(!known.contains(&id) && maps.guard(id)?.is_none())
    };
    for (key, id) in maps.targets.entries()? {
        // The kernel side may have put another one there meanwhile.
        if is_dead(maps, id)? && maps.targets.get(&key, 0).is_ok_and(|now| now == id) {
            remove(&mut maps.targets, "TARGETS", &key)?;
        }
    }
    let intruders = maps.intruders.entries()?;
    let violators = maps.violators.entries()?;
    let mut over = BTreeSet::new();
    for (key, _) in intruders.iter().chain(&violators) {
        if is_dead(maps, key.guard)? && maps.ended.get(&key.guard, 0).is_err() {
            over.insert(key.guard);
        }
    }
    forget_those(maps, |id| over.contains(&id))?;
    // For each ancestor: the entries of the dead, and whether one below it lives.
    let mut marked: BTreeMap<CgroupKey, (Vec<(AncestorKey, GuardId)>, bool)> = BTreeMap::new();
    for (key, id) in maps.ancestors.entries()? {
        let (dead, any_lives) = marked.entry(key.cgroup).or_default();
        match is_dead(maps, id)? {
            true => dead.push((key, id)),
            false => *any_lives = true,
        }
    }
    for (dead, any_lives) in marked.into_values() {
        for (key, id) in dead {
            if !(any_lives && key.guard == AncestorKey::ANY)
                && maps.ancestors.get(&key, 0).is_ok_and(|now| now == id)
            {
                remove(&mut maps.ancestors, "ANCESTORS", &key)?;
            }
        }
    }
    Ok(())
}

/// Removes what is kept of who did what to these guards.
pub(super) fn forget(
    maps: &mut Maps,
    guards: impl IntoIterator<Item = (GuardId, Entry)>,
) -> Result<(), Error> {
    // To most, nobody did anything.
    let some = |counts: [u64; Protection::COUNT]| counts != [0; Protection::COUNT];
    let guards: BTreeSet<_> = guards
        .into_iter()
        .filter(|(_, entry)| some(entry.denials) || some(entry.disturbances))
        .map(|(id, _)| id)
        .collect();
    match guards.is_empty() {
        true => Ok(()),
        false => forget_those(maps, |id| guards.contains(&id)),
    }
}

fn forget_those(maps: &mut Maps, is_over: impl Fn(GuardId) -> bool) -> Result<(), Error> {
    for (key, _) in maps.intruders.entries()? {
        if is_over(key.guard) {
            remove(&mut maps.intruders, "INTRUDERS", &key)?;
        }
    }
    for (key, _) in maps.violators.entries()? {
        if is_over(key.guard) {
            remove(&mut maps.violators, "VIOLATORS", &key)?;
        }
    }
    Ok(())
}

/// Those that there are.
pub(super) fn hierarchies_there() -> Result<Hierarchies, Error> {
    Ok(Hierarchies {
        v1: cgroup::freezer_mount()?.is_some(),
        v2: cgroup::unified_mount()?.is_some(),
    })
}

/// The hierarchies that the guards in force have targets in.
pub(super) fn hierarchies(maps: &Maps) -> Result<Hierarchies, Error> {
    let there = hierarchies_there()?;
    let mut found = Hierarchies::default();
    for key in maps.targets.keys().flatten() {
        match key.hierarchy_id {
            0 => found.v2 = true,
            _ => found.v1 = true,
        }
        if found == there {
            break;
        }
    }
    Ok(found)
}

/// Whether no guard is in force.
pub(super) fn is_idle(maps: &Maps) -> Result<bool, Error> {
    // Of many guards, one of the first is in force.
    Ok(!maps
        .guards
        .iter()
        .flatten()
        .any(|(_, entry)| is_in_force(&entry)))
}

fn is_in_force(entry: &Entry) -> bool {
    !entry.is_candidate() && entry.is_in_force()
}

/// Every guard in force.
pub(super) fn in_force(maps: &Maps) -> Result<Vec<(GuardId, Entry)>, Error> {
    let mut guards = maps.guards.entries()?;
    guards.retain(|(_, entry)| is_in_force(entry));
    Ok(guards)
}

/// Detaches every program that no guard needs; without any guard, all of them. They stay
/// loaded for the next guard. A running daemon does this itself, some time later: the next
/// guard may begin at once.
pub(super) fn detach_idle(lock: &Locked, maps: &Maps) -> Result<(), Error> {
    if daemon_runs() {
        return Ok(());
    }
    // The daemon may have crashed, and come back: it is left what it watches.
    let watch = maps.guards.keys().next().is_some() || maps.ended.keys().next().is_some();
    Ok(lock.detach_unneeded(hierarchies(maps)?, watch && lock.watches())?)
}

pub(super) fn insert<K: Pod, V: Pod>(
    map: &mut Table<K, V>,
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
    map: &mut Table<K, V>,
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
