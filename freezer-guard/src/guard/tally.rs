//! The counts of guards that the service has not counted as ended yet, and the state of the host:
//! for its metrics.

use std::collections::BTreeMap;

use freezer_guard_abi::{GuardEntry, GuardId};

use super::{
    Error,
    entries::is_in_force,
    reconcile::{hierarchies_there, is_record},
    status::{by_protection, missed, violations},
    store::GuardStore,
};
use crate::kernel::{Levels, Locked};

/// The counts of guards, and the state of the host, at one moment.
#[derive(Debug, Default)]
pub struct Tally {
    /// The guards in force, and those that [`take_ended`](super::automatic::take_ended) has not
    /// finished with.
    pub guards: BTreeMap<GuardId, Counts>,
    /// The level that each protection reaches on this host.
    pub levels: Levels,
    /// How often the kernel has left BPF programs out since their load.
    pub recursion_misses: u64,
}

/// The counts of a guard. They are cheaper than a [`Status`](super::Status), which names cgroups and
/// processes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Whether the guard is in force.
    pub is_in_force: bool,
    /// See [`Status::denials`](super::Status::denials).
    pub denials: BTreeMap<String, u64>,
    /// See [`Status::violations`](super::Status::violations).
    pub violations: BTreeMap<String, u64>,
    /// See [`Status::missed`](super::Status::missed).
    pub missed: u64,
    /// See [`Status::unproven`](super::Status::unproven).
    pub unproven: bool,
}

/// Counts all guards, those included that have ended and that nobody has read yet: so no count ever
/// goes down.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn tally() -> Result<Tally, Error> {
    let lock = Locked::wait()?;
    let guards = match lock.open()? {
        Some(maps) => counts(&maps)?,
        None => BTreeMap::new(),
    };
    Ok(Tally {
        guards,
        levels: lock.loaded_levels(hierarchies_there()?),
        recursion_misses: lock.recursion_misses(),
    })
}

pub(super) fn counts(store: &dyn GuardStore) -> Result<BTreeMap<GuardId, Counts>, Error> {
    let mut guards = BTreeMap::new();
    // A guard that ends meanwhile is in one of them.
    for (id, entry) in store.guards().entries()? {
        if is_in_force(&entry) || is_record(&entry) {
            guards.insert(id, Counts::of(store, &entry)?);
        }
    }
    for (id, entry) in store.ended().entries()? {
        guards.insert(id, Counts::of(store, &entry)?);
    }
    Ok(guards)
}

impl Counts {
    fn of(store: &dyn GuardStore, entry: &GuardEntry) -> Result<Self, Error> {
        Ok(Self {
            is_in_force: entry.is_in_force(),
            denials: by_protection(&entry.denials),
            violations: by_protection(&violations(entry)),
            missed: missed(store, entry)?,
            unproven: entry.flags & GuardEntry::UNPROVEN != 0,
        })
    }
}
