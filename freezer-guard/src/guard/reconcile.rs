//! Removes marks, entries and links that no guard needs any more: the kernel side has ended
//! their guard, or a crash has left them.

use std::collections::{BTreeMap, BTreeSet};

use freezer_guard_abi::{AncestorKey, CgroupKey, Guard as Entry, GuardId, Protection, control};

use super::{Error, entries::remove};
use crate::{
    cgroup,
    kernel::{Hierarchies, Locked, Maps, daemon_runs},
    sys,
};

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
pub(super) fn hierarchies_in_use(maps: &Maps) -> Result<Hierarchies, Error> {
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

/// Detaches every program that no guard needs; without any guard, all of them. They stay
/// loaded for the next guard. A running daemon does this itself, some time later: the next
/// guard may begin at once.
pub(super) fn detach_idle(lock: &Locked, maps: &Maps) -> Result<(), Error> {
    if daemon_runs() {
        return Ok(());
    }
    // The daemon may have crashed, and come back: it is left what it watches.
    let watch = maps.guards.keys().next().is_some() || maps.ended.keys().next().is_some();
    Ok(lock.detach_unneeded(hierarchies_in_use(maps)?, watch && lock.watches())?)
}
