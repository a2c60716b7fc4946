//! The other hierarchy of a hybrid host: a freezer there freezes a guard's tasks just as well.

use freezer_guard_abi::{GuardEntry, GuardId};

use super::{
    Error, Guard,
    checks::refuse_frozen_above,
    freezer::wait_quiescent,
    lineage::Lineage,
    marks::{mark_ancestors, mark_target},
    overlap::{covering, guarded, refuse_guarded},
    store::GuardStore,
};
use crate::{
    cgroup::{self, Other},
    kernel::Locked,
};

impl Guard {
    /// Sees that no cgroup that tasks of the targets are in, in the other hierarchy, is frozen.
    ///
    /// # Errors
    /// When one is.
    pub(super) fn refuse_frozen_beside(&self) -> Result<(), Error> {
        for target in self.targets.iter().filter(|_| !self.roots.is_empty()) {
            for other in cgroup::others(&target.iter().collect::<Vec<_>>())? {
                refuse_frozen_above(&other.cgroup, &self.path())?;
            }
        }
        Ok(())
    }

    /// Guards the tasks also where they are in the other hierarchy. A cgroup that holds no other
    /// task becomes a target. One that is shared lies above the guard: nobody can freeze it, and
    /// its other tasks come and go.
    ///
    /// # Errors
    /// When another guard holds such a cgroup, or it is frozen.
    pub(super) fn surround(&mut self) -> Result<(), Error> {
        if self.roots.is_empty() {
            return Ok(());
        }
        let by_user = self.entry()?.flags & GuardEntry::BY_USER != 0;
        for number in 0..self.targets.len() {
            let target: Vec<_> = self.targets[number].iter().collect();
            let path = self.path();
            for other in cgroup::others(&target)? {
                let lineage = Lineage::of(&other.cgroup)?;
                if self.shared.iter().any(|known| known.key == lineage.key) {
                    continue;
                }
                // First of all, so that the marks are removed at the end.
                match other.is_shared {
                    true => self.shared.push(lineage.clone()),
                    false => self.lineages.push(lineage.clone()),
                }
                let lock = Locked::wait()?;
                mark_other(&self.maps, self.id, by_user, &other, &lineage)?;
                drop(lock);
                refuse_frozen_above(&other.cgroup, &path)?;
                if !other.is_shared {
                    self.targets[number].push(other.cgroup);
                }
            }
        }
        Ok(())
    }
}

/// Marks such a cgroup for the guard. `by_user`: it is a user's, who may not keep others from
/// freezing their own tasks.
pub(super) fn mark_other(
    store: &dyn GuardStore,
    id: GuardId,
    by_user: bool,
    other: &Other,
    lineage: &Lineage,
) -> Result<(), Error> {
    let refuse_others = || match other.is_shared {
        // Guards of other tasks may lie below it.
        true => match covering(store, lineage, Some(id))? {
            Some(other) => Err(guarded(store, lineage.key, other)?),
            None => Ok(()),
        },
        false => refuse_guarded(store, std::slice::from_ref(lineage), Some(id)),
    };
    refuse_others()?;
    match other.is_shared {
        true if by_user => return Ok(()),
        true => mark_ancestors(store, lineage.line(), id)?,
        false => {
            mark_target(store, lineage, id)?;
            mark_ancestors(store, lineage.above.iter().copied(), id)?;
        }
    }
    // As in `claim`: the kernel side may have been faster.
    wait_quiescent(&other.cgroup);
    refuse_others()
}
