//! The counts of guards that the service has not counted as ended yet, and the state of the host:
//! for its metrics.

use std::collections::BTreeMap;

use freezer_guard_abi::{GuardEntry, GuardId};

use super::{
    Error,
    entries::is_in_force,
    reconcile::{hierarchies_there, is_record},
    status::{by_protection, may_miss, missed_of, violations},
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
    /// See [`Locked::recursion_misses`].
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
    let mut entries = BTreeMap::new();
    // A guard that ends meanwhile is in one of them.
    let held = store.guards().entries()?.into_iter();
    entries.extend(held.filter(|(_, entry)| is_in_force(entry) || is_record(entry)));
    entries.extend(store.ended().entries()?);
    // That of a guard is a difference of this number, which takes time to read.
    let missed_now = match entries.values().any(may_miss) {
        true => store.missed()?,
        false => 0,
    };
    let entries = entries.into_iter();
    Ok(entries
        .map(|(id, entry)| (id, Counts::of(missed_now, &entry)))
        .collect())
}

impl Counts {
    fn of(missed_now: u64, entry: &GuardEntry) -> Self {
        Self {
            is_in_force: entry.is_in_force(),
            denials: by_protection(&entry.denials),
            violations: by_protection(&violations(entry)),
            missed: missed_of(missed_now, entry),
            unproven: entry.flags & GuardEntry::UNPROVEN != 0,
        }
    }
}
