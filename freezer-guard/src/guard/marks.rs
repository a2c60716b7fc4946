//! The marks of a guard in the maps: on its targets, and on what is above them.

use aya::maps::MapError;
use freezer_guard_abi::{AncestorKey, CgroupKey, GuardId, control};

use super::{
    Error, Status,
    entries::{BPF_NOEXIST, insert, inserted, live, remove},
    reconcile::{forget, reconcile},
    status::{Seen, targets as targets_of},
};
use crate::{
    cgroup::{self, Cgroup},
    kernel::{Maps, daemon_runs},
    sys,
};

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
