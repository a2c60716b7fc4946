//! Removes marks, entries and links that no guard needs any more: the kernel side has ended
//! their guard, or a crash has left them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use freezer_guard_abi::{AncestorKey, CgroupKey, GuardEntry, GuardId, Protection};

use super::{
    Error,
    entries::{is_idle, targets},
    now,
    store::GuardStore,
};
use crate::{
    cgroup::{self, Cgroup, Version},
    kernel::{self, Hierarchies, Locked},
};

/// Removes what guards have left that were ended by the kernel side, if there is any.
pub(super) fn reconcile(store: &dyn GuardStore) -> Result<(), Error> {
    drop_ended(store)?;
    let stale = store.stale()?;
    if stale == 0 {
        return Ok(());
    }
    sweep(store)?;
    store.has_swept(stale)?;
    Ok(())
}

/// Without a daemon nobody asks what became of guards that somebody had asked for.
fn drop_ended(store: &dyn GuardStore) -> Result<(), Error> {
    if store.ended().find(&|_, _| true)?.is_none() || store.daemon_runs() {
        return Ok(());
    }
    for (id, entry) in store.ended().entries()? {
        if !entry.is_automatic() {
            drop_ended_one(store, id, &entry)?;
        }
    }
    Ok(())
}

/// Whether the entry in `GUARDS` is the record of an ended guard.
pub(super) fn is_record(entry: &GuardEntry) -> bool {
    !entry.is_in_force() && entry.flags & GuardEntry::UNREAD != 0
}

/// Moves records of ended guards from `GUARDS`, where the kernel side leaves them while `ENDED` is
/// full, to `ENDED`.
pub(super) fn keep_unread(store: &dyn GuardStore) -> Result<(), Error> {
    let mut records = store.guards().entries()?;
    records.retain(|(_, entry)| is_record(entry) && entry.members == 0);
    if records.is_empty() {
        return Ok(());
    }
    // An entry is used again at once.
    store.wait_for_programs()?;
    for (id, entry) in records {
        match store.ended().put(id, entry) {
            Err(kernel::Error::Full(_)) => break,
            put => put?,
        }
        store.guards().remove(&id)?;
    }
    Ok(())
}

/// Removes everything that no guard needs. Marks of the living are never missing in
/// between.
pub(super) fn sweep(store: &dyn GuardStore) -> Result<(), Error> {
    drop_ended(store)?;
    let guards = store.guards().entries()?;
    // A program that is ending a guard comes to its end first: what it has not taken away
    // by then, no program does.
    store.wait_for_programs()?;
    let keeps = |entry: &GuardEntry| is_record(entry) && store.daemon_runs();
    for (id, entry) in &guards {
        if !entry.is_in_force() && entry.members == 0 && !keeps(entry) {
            store.guards().remove(id)?;
        }
    }
    let known: BTreeSet<_> = guards
        .into_iter()
        .filter(|(_, entry)| entry.is_in_force() || keeps(entry))
        .map(|(id, _)| id)
        .collect();
    // One may have begun since.
    let is_dead =
        |id| -> Result<bool, Error> { Ok(!known.contains(&id) && store.guard(id)?.is_none()) };
    for (key, id) in store.targets().entries()? {
        // The service finds the cgroups to thaw by these marks.
        if waits_for_thaw(store, id)? {
            continue;
        }
        if is_dead(id)? {
            store.unmark(key, id)?;
        }
    }
    let intruders = store.intruders().entries()?;
    let violators = store.violators().entries()?;
    let mut over = BTreeSet::new();
    for (key, _) in intruders.iter().chain(&violators) {
        if is_dead(key.guard)? && store.ended().get(&key.guard)?.is_none() {
            over.insert(key.guard);
        }
    }
    forget_those(store, |id| over.contains(&id))?;
    // For each ancestor: the entries of the dead, and whether one below it lives.
    let mut marked: BTreeMap<CgroupKey, (Vec<(AncestorKey, GuardId)>, bool)> = BTreeMap::new();
    for (key, id) in store.ancestors().entries()? {
        let (dead, any_lives) = marked.entry(key.cgroup).or_default();
        match is_dead(id)? {
            true => dead.push((key, id)),
            false => *any_lives = true,
        }
    }
    for (dead, any_lives) in marked.into_values() {
        for (key, id) in dead {
            if key.guard != AncestorKey::ANY {
                store.ancestors().remove(&key)?;
            } else if !any_lives {
                store.unmark_last_below(key.cgroup, id)?;
            }
        }
    }
    Ok(())
}

/// Drops the record of a guard that has ended, after the marks of cgroups that had to be thawed: a
/// sweep leaves those.
pub(super) fn drop_ended_one(
    store: &dyn GuardStore,
    id: GuardId,
    entry: &GuardEntry,
) -> Result<(), Error> {
    if entry.flags & GuardEntry::FROZEN_BY_US != 0 {
        for key in targets(store, id)? {
            store.unmark(key, id)?;
        }
    }
    Ok(store.ended().remove(&id)?)
}

/// Whether this guard has ended, and left targets frozen that nobody has thawed.
fn waits_for_thaw(store: &dyn GuardStore, id: GuardId) -> Result<bool, Error> {
    let ended = store.ended().get(&id)?;
    Ok(ended.is_some_and(|entry| entry.flags & GuardEntry::FROZEN_BY_US != 0))
}

/// Removes what is kept of who did what to these guards.
pub(super) fn forget(
    store: &dyn GuardStore,
    guards: impl IntoIterator<Item = (GuardId, GuardEntry)>,
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
        false => forget_those(store, |id| guards.contains(&id)),
    }
}

fn forget_those(store: &dyn GuardStore, is_over: impl Fn(GuardId) -> bool) -> Result<(), Error> {
    for (key, _) in store.intruders().entries()? {
        if is_over(key.guard) {
            store.intruders().remove(&key)?;
        }
    }
    for (key, _) in store.violators().entries()? {
        if is_over(key.guard) {
            store.violators().remove(&key)?;
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

/// Those that these cgroups are in.
pub(super) fn hierarchies_of<'a>(cgroups: impl Iterator<Item = &'a Cgroup>) -> Hierarchies {
    let mut found = Hierarchies::default();
    for cgroup in cgroups {
        match cgroup.version() {
            Version::V1 => found.v1 = true,
            Version::V2 => found.v2 = true,
        }
    }
    found
}

/// How long after its `execve` a checkpointer is expected to freeze a cgroup. What refuses stays
/// attached for that time.
const EXPECTED: Duration = Duration::from_secs(60);

/// The candidates that are expected to freeze a cgroup.
pub(super) fn expected(store: &dyn GuardStore) -> Result<Vec<GuardId>, Error> {
    if store.candidates()? == 0 {
        return Ok(Vec::new());
    }
    let now = now();
    // The id of a candidate is the time of its `execve`.
    let is_expected = |id: GuardId, entry: &GuardEntry| {
        let age = Duration::from_nanos(now.saturating_sub(id));
        entry.is_in_force() && entry.is_candidate() && age < EXPECTED
    };
    let guards = store.guards().entries()?.into_iter();
    Ok(guards
        .filter(|(id, entry)| is_expected(*id, entry))
        .map(|(id, _)| id)
        .collect())
}

/// The hierarchies that the tasks of the guards in force are in: their roots are marked. While a
/// checkpointer is expected to freeze a cgroup, these are all that there are.
pub(super) fn hierarchies_in_use(store: &dyn GuardStore) -> Result<Hierarchies, Error> {
    match expected(store)?.is_empty() {
        true => hierarchies_of_guards(store),
        false => hierarchies_there(),
    }
}

/// The same without regard to checkpointers.
pub(super) fn hierarchies_of_guards(store: &dyn GuardStore) -> Result<Hierarchies, Error> {
    if is_idle(store)? {
        return Ok(Hierarchies::default());
    }
    // Of many marks, one of the first is in each. (A caller may be where the v1 freezer is
    // not mounted.)
    let is_in = |v2| {
        store.ancestors().find(&move |key, _| {
            // Ended guards leave marks under `ANY`.
            key.guard != AncestorKey::ANY && (key.cgroup.hierarchy_id == 0) == v2
        })
    };
    Ok(Hierarchies {
        v1: cgroup::has_v1_freezer() && is_in(false)?.is_some(),
        v2: is_in(true)?.is_some(),
    })
}

/// Detaches every program that no guard needs; without any guard, all of them. They stay
/// loaded for the next guard. A running daemon does this itself, some time later: the next
/// guard may begin at once.
pub(super) fn detach_idle(lock: &Locked, store: &dyn GuardStore) -> Result<(), Error> {
    if store.daemon_runs() {
        return Ok(());
    }
    // The daemon may have crashed, and come back: it is left what it watches.
    let any = store.guards().find(&|_, _| true)?.is_some();
    let watch = any || store.ended().find(&|_, _| true)?.is_some();
    Ok(lock.detach_unneeded(hierarchies_in_use(store)?, watch && lock.watches())?)
}
