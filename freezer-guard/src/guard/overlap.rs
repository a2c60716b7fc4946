//! Which guards are in the way of which: no two cover the same cgroup.

use freezer_guard_abi::{AncestorKey, CgroupKey, Guard as Entry, GuardId};

use super::{
    Error, Target,
    entries::live,
    freezing::restore_targets,
    marks::{Marks, release},
    status::{holder_pids, targets as targets_of},
};
use crate::{cgroup::Cgroup, kernel::Maps};

pub(super) fn covering(maps: &Maps, cgroup: &Cgroup) -> Result<Option<GuardId>, Error> {
    let above = cgroup.ancestors()?;
    for key in std::iter::once(cgroup.key()).chain(above.iter().map(Cgroup::key)) {
        if let Some(id) = live(maps, maps.targets.get(&key, 0))? {
            return Ok(Some(id));
        }
    }
    Ok(None)
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
    let of = first.map(super::path).unwrap_or_default();
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
