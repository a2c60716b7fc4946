//! How far a guard goes, and how far it has to.

use freezer_guard_abi::{Level, Protection};

use super::{Error, Shortfall};
use crate::kernel::{self, Hierarchies, Levels, Locked};

/// What is wanted of a guard.
#[derive(Debug, Clone)]
pub struct Requirements {
    /// The protections that are lifted.
    pub allowed: Vec<Protection>,
    /// The weakest level that will do, for each protection that is not lifted;
    /// `None`: whatever there is.
    pub require: Option<Level>,
    /// The strongest level that is used.
    pub at_most: Level,
    /// The uid of the user who owns the guard: it refuses nothing to tasks with authority
    /// over him. `None`: root of the host.
    pub owner: Option<u32>,
}

/// As they stand in a guard's entry.
pub(super) fn numbers(levels: Levels) -> [u32; Protection::COUNT] {
    levels.map(|level| level.map_or(0, |level| level as u32))
}

/// A bit for each of these protections.
pub(super) fn bits(protections: &[Protection]) -> u64 {
    protections
        .iter()
        .fold(0, |bits, protection| bits | protection.bit())
}

impl Requirements {
    /// The protections that are lifted, a bit each.
    pub(super) fn allowed_bits(&self) -> u64 {
        bits(&self.allowed)
    }

    /// The levels that guards in these hierarchies have with what is attached.
    pub(super) fn check(
        &self,
        lock: &Locked,
        hierarchies: Hierarchies,
        reasons: &mut Vec<kernel::Error>,
    ) -> Result<Levels, Error> {
        let levels = lock.levels(hierarchies);
        let held = lock.level();
        if let Some(held) = held
            && held > self.at_most
        {
            let held = held.name();
            return Err(kernel::Error::OtherLevel { held }.into());
        }
        let weak: Vec<_> = Protection::ALL
            .into_iter()
            .zip(levels)
            .filter(|(protection, _)| !self.allowed.contains(protection))
            .filter(|(_, level)| *level < self.require)
            .map(|(protection, level)| Shortfall { protection, level })
            .collect();
        let Some(required) = self.require.filter(|_| !weak.is_empty()) else {
            return Ok(levels);
        };
        if reasons.is_empty() {
            // It was loaded by somebody else, who may have wanted no more.
            let (strongest, reason) = Locked::strongest(self.at_most)?;
            if let Some(held) = held
                && held < strongest
            {
                let held = held.name();
                return Err(kernel::Error::OtherLevel { held }.into());
            }
            reasons.extend(reason);
            reasons.extend(lock.not_attached(hierarchies));
        }
        Err(Error::TooWeak {
            required: required.name(),
            weak,
            reasons: std::mem::take(reasons),
        })
    }
}
