//! How a guard freezes its targets.

use freezer_guard_abi::{CgroupKey, GuardEntry, GuardId};

use super::{
    Error, Guard,
    checks::{is_frozen, refuse_frozen_around},
    freezer::Freezer,
    restoring::{Found, restore},
    store::GuardStore,
};
use crate::cgroup::{self, Cgroup};

/// How the targets were found, once they have been looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Freezers {
    /// Those that we froze.
    froze: Vec<CgroupKey>,
    /// Those that were frozen before.
    found_frozen: Vec<CgroupKey>,
    /// Whether they have been looked at.
    pub(super) looked_at: bool,
}

impl Freezers {
    fn found(&self, cgroup: CgroupKey) -> Found {
        if self.froze.contains(&cgroup) {
            Found::Thawed
        } else if self.found_frozen.contains(&cgroup) {
            Found::Frozen
        } else {
            Found::Untouched
        }
    }

    /// Freezes a target that is thawed, if that is wanted; when called again, what somebody
    /// has thawed meanwhile. Returns whether it is frozen now, or will be.
    pub(super) fn freeze(
        &mut self,
        target: &[impl Freezer],
        if_thawed: bool,
    ) -> Result<bool, cgroup::Error> {
        let mut frozen = false;
        for cgroup in target {
            let is_known = self.found(cgroup.key()) != Found::Untouched;
            if is_known && !cgroup.is_self_frozen()? {
                cgroup.freeze()?;
            } else if !is_known && !self.looked_at && cgroup.is_self_frozen()? {
                self.found_frozen.push(cgroup.key());
            }
            frozen |= self.found(cgroup.key()) != Found::Untouched;
        }
        if let Some(first) = target.first()
            && !frozen
            && if_thawed
        {
            first.freeze()?;
            self.froze.push(first.key());
            frozen = true;
        }
        Ok(frozen)
    }

    /// Whether anything was frozen before.
    #[cfg(test)]
    pub(super) fn has_found_frozen(&self) -> bool {
        !self.found_frozen.is_empty()
    }

    /// Records the state that was found in the guard's entry, for another process that ends the
    /// guard. If the targets differ, it records nothing and they stay as they are.
    pub(super) fn remember<'a, F: Freezer + 'a>(
        &mut self,
        store: &dyn GuardStore,
        id: GuardId,
        cgroups: impl IntoIterator<Item = &'a F>,
        if_thawed: bool,
    ) -> Result<(), Error> {
        let mut frozen = Vec::new();
        for cgroup in cgroups {
            frozen.push(cgroup.is_self_frozen()?);
        }
        let found = match (frozen.contains(&true), frozen.contains(&false)) {
            (true, false) => GuardEntry::FOUND_FROZEN,
            (false, true) if if_thawed => GuardEntry::FROZEN_BY_US,
            _ => return Ok(()),
        };
        store.set_flag(id, found)?;
        Ok(())
    }

    /// Brings the targets into the state that they were found in. `entered`: the guard has
    /// been CHECKPOINTING.
    pub(super) fn restore<'a, F: Freezer + 'a>(
        &self,
        store: &dyn GuardStore,
        id: GuardId,
        cgroups: impl IntoIterator<Item = &'a F>,
        entered: bool,
    ) -> Result<(), Error> {
        // Ours no more, if somebody has ended it: the kernel refuses a thaw if somebody else
        // guards it now, and to freeze it would disturb that.
        let mine = store.guard(id)?.is_some();
        let found = |cgroup: &F| match self.found(cgroup.key()) {
            Found::Frozen if !(mine && entered) => Found::Untouched,
            found => found,
        };
        restore(cgroups.into_iter().map(|cgroup| (cgroup, found(cgroup)))).1
    }
}

impl Guard {
    /// Makes sure that every target is frozen or will be: freezes it if asked
    /// to, and when called again, freezes again what somebody has thawed.
    ///
    /// # Errors
    /// When a target is thawed and not to be frozen, or would not be thawed by
    /// the checkpointer's thaw.
    pub fn freeze(&mut self, if_thawed: bool) -> Result<(), Error> {
        let cgroups = self.targets.iter().flatten();
        if !self.freezers.looked_at {
            self.freezers
                .remember(&self.maps, self.id, cgroups.clone(), if_thawed)?;
        }
        cgroups.into_iter().try_for_each(refuse_frozen_around)?;
        for target in &self.targets {
            let will_be = self.freezers.freeze(target, if_thawed)?;
            if let Some(first) = target.first()
                && !self.freezers.looked_at
                && !(will_be && (if_thawed || is_frozen(target)?))
            {
                return Err(Error::NotFrozen {
                    path: first.path().to_owned(),
                    state: first.freezer_state()?,
                });
            }
        }
        self.freezers.looked_at = true;
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
}
