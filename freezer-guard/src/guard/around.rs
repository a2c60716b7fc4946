//! The other hierarchy of a hybrid host: a freezer there freezes a guard's tasks just as well.

use freezer_guard_abi::{GuardEntry, GuardId};

use super::{
    Error, Guard,
    checks::refuse_frozen,
    freezer::wait_quiescent,
    lineage::Lineage,
    marking::displace,
    marks::mark_ancestors,
    overlap::{covering, guarded},
    store::GuardStore,
};
use crate::{
    cgroup::{self, Cgroup},
    kernel::Locked,
};

impl Guard {
    /// Marks the cgroups that tasks of the targets are in, in the other hierarchy, as lying above
    /// the guard: nobody can freeze or kill them, and other tasks there come and go. A user's guard
    /// marks none, or he could keep others from freezing their own tasks.
    ///
    /// # Errors
    /// When another guard holds such a cgroup, or it is frozen.
    pub(super) fn surround(&mut self) -> Result<(), Error> {
        if self.roots.is_empty() {
            return Ok(());
        }
        let by_user = self.entry()?.flags & GuardEntry::BY_USER != 0;
        for other in cgroup::others(&self.cgroups().collect::<Vec<_>>())? {
            let lineage = Lineage::of(&other)?;
            let is_known = self.around.iter().any(|known| known.key == lineage.key);
            if !by_user && !is_known {
                let lock = Locked::wait()?;
                // Somebody may have ended the guard meanwhile: then nobody removes new marks.
                self.entry()?;
                self.around.push(lineage.clone());
                let covering = || covering(&self.maps, &lineage, Some(self.id));
                displace(&self.maps, &covering)?;
                mark_around(&self.maps, self.id, &other, &lineage)?;
                drop(lock);
            }
            let above = other.ancestors()?;
            refuse_frozen(&above, &self.path())?;
            refuse_frozen(std::slice::from_ref(&other), &self.path())?;
        }
        Ok(())
    }
}

/// Marks such a cgroup for a guard that is no user's.
pub(super) fn mark_around(
    store: &dyn GuardStore,
    id: GuardId,
    cgroup: &Cgroup,
    lineage: &Lineage,
) -> Result<(), Error> {
    // Guards of other tasks may lie below it.
    let refuse_others = || match covering(store, lineage, Some(id))? {
        Some(other) => Err(guarded(store, lineage.key, other)?),
        None => Ok(()),
    };
    refuse_others()?;
    mark_ancestors(store, lineage.line(), id)?;
    // As in `claim`: the kernel side may have been faster.
    wait_quiescent(cgroup);
    refuse_others()
}
