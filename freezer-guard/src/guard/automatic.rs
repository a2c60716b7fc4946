//! Guards that nobody asks for: the kernel side notices a checkpointer and begins
//! them; what user space has to do for that is here.

use std::collections::{BTreeMap, BTreeSet};

use freezer_guard_abi::{CgroupKey, Guard as Entry, GuardId, Level, Protection, control};

use super::{
    Error, Status,
    entries::{is_idle, remove},
    level,
    marks::{ancestors, mark_ancestors, mark_target, place_target},
    overlap::refuse_guarded,
    reconcile::{forget, hierarchies_in_use, hierarchies_there, reconcile, sweep},
    status::{Seen, status, targets},
};
use crate::{
    cgroup::{self, Cgroup},
    kernel::{self, Locked, Maps},
};

/// What automatic guards are to be like.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The protections that are lifted.
    pub allowed: Vec<Protection>,
    /// Whether checkpointers of users, who cannot dump the processes of others, have guards
    /// too.
    pub users: bool,
}

/// Loads everything, so that a guard that begins finds it there, and if asked
/// to, watches out for checkpointers: with what these guards are to be like. To be
/// called again whenever that has changed, or programs may be gone. Returns why it
/// does not go further.
///
/// # Errors
/// When the kernel cannot do it, or another version holds guards.
pub fn watch(automatic: Option<&Wanted>, at_most: Level) -> Result<Vec<kernel::Error>, Error> {
    let lock = Locked::wait()?;
    let mut opened = lock.open()?;
    if let Some(maps) = &mut opened {
        reconcile(maps)?;
        let is_another = lock.level() != Some(Locked::strongest(at_most)?.0);
        if is_idle(maps)? && is_another {
            lock.unload()?;
            opened = None;
        }
    }
    let (mut maps, mut reasons) = match opened {
        Some(maps) => (maps, Vec::new()),
        None => lock.load(at_most)?,
    };
    let template = match automatic {
        Some(wanted) => {
            reasons.extend(lock.watch(hierarchies_there()?)?);
            Entry {
                members: 1,
                allowed: level::bits(&wanted.allowed),
                flags: if wanted.users { Entry::BY_USER } else { 0 },
                // Until more is attached.
                levels: level::numbers(watched_levels(&lock)?),
                missed_before: Entry::UNKNOWN,
                ..Entry::default()
            }
        }
        None => {
            reasons.extend(lock.load_for(hierarchies_there()?)?);
            Entry::default()
        }
    };
    maps.set_automatic(template)?;
    settle(&lock, &mut maps, automatic.is_some())?;
    Ok(reasons)
}

/// How far each protection goes in all the hierarchies that there are.
fn watched_levels(lock: &Locked) -> Result<kernel::Levels, Error> {
    let levels = lock.levels(hierarchies_there()?);
    // What refuses is not attached yet, or goes with the guard that needs it.
    Ok(levels.map(|level| level.map(|_| Level::Detect)))
}

/// Ends the watch, and detaches what no guard needs.
///
/// # Errors
/// When the pins cannot be changed.
pub fn unwatch() -> Result<(), Error> {
    let lock = Locked::wait()?;
    let Some(mut maps) = lock.open()? else {
        return Ok(());
    };
    maps.set_automatic(Entry::default())?;
    reconcile(&mut maps)?;
    // A daemon that comes back finds the candidates.
    let has_candidates = maps.guards.keys().next().is_some();
    settle(&lock, &mut maps, has_candidates)
}

/// Removes what has ended, and detaches what no guard needs, nor the watch if
/// there is to be one.
fn settle(lock: &Locked, maps: &mut Maps, watch: bool) -> Result<(), Error> {
    sweep(maps)?;
    Ok(lock.detach_unneeded(hierarchies_in_use(maps)?, watch)?)
}

/// A guard that has begun.
#[derive(Debug)]
pub struct Begun {
    /// What it is now.
    pub status: Status,
    /// Why it does not go further.
    pub weak_because: Vec<kernel::Error>,
}

/// What has become of guards that have begun; those that have ended by now are left out.
/// For an automatic one, attaches what refuses, and guards the container in its other
/// hierarchy: where that cannot be done the guard notices, and refuses nothing.
///
/// # Errors
/// When the kernel cannot be asked.
#[expect(clippy::type_complexity, reason = "each has its own error")]
pub fn arm(ids: &[GuardId]) -> Result<Vec<(GuardId, Result<Begun, Error>)>, Error> {
    let lock = Locked::wait()?;
    let Some(mut maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    let mut armed = Vec::new();
    // One that has several targets has begun several times.
    for id in &ids.iter().copied().collect::<BTreeSet<_>>() {
        match maps.guard(*id)? {
            Some(entry) if entry.is_candidate() => {}
            Some(entry) if entry.leader == 0 => armed.push((*id, Ok(Vec::new()))),
            Some(entry) => armed.push((*id, arm_one(&lock, &mut maps, *id, &entry))),
            None => {}
        }
    }
    let mut seen = match armed.len() {
        0 | 1 => None,
        _ => Some(Seen::of_all(&maps)?),
    };
    let mut begun = Vec::new();
    for (id, armed) in armed {
        let Some(entry) = maps.guard(id)? else {
            continue;
        };
        let status = match &mut seen {
            Some(seen) => seen
                .remove(&id)
                .unwrap_or_default()
                .status(&maps, id, &entry)?,
            None => status(&maps, id, &entry)?,
        };
        begun.push((
            id,
            armed.map(|weak_because| Begun {
                status,
                weak_because,
            }),
        ));
    }
    Ok(begun)
}

fn arm_one(
    lock: &Locked,
    maps: &mut Maps,
    id: GuardId,
    entry: &Entry,
) -> Result<Vec<kernel::Error>, Error> {
    // Somebody who tidied up may have taken it for another one's.
    if maps.targets.get(&entry.target, 0).is_err() {
        place_target(maps, entry.target, id)?;
    }
    // One may be gone by now.
    let mut targets: Vec<_> = targets(maps, id)?
        .into_iter()
        .filter_map(|key| Cgroup::open(&cgroup::by_key(key)?).ok())
        .collect();
    for other in others(&targets) {
        let other = vec![other];
        if refuse_guarded(maps, std::slice::from_ref(&other), Some(id)).is_ok() {
            for other in other {
                mark_target(maps, &other, id)?;
                targets.push(other);
            }
        }
    }
    for target in &targets {
        mark_ancestors(maps, &ancestors(target)?, id)?;
    }
    let hierarchies = hierarchies_in_use(maps)?;
    let weak_because = lock.attach(hierarchies)?;
    let levels = level::numbers(lock.levels(hierarchies))
        .iter()
        .rev()
        .fold(0, |bytes, level| bytes << 8 | u64::from(*level));
    maps.control(control::ARMED, id, &[levels, maps.missed()?])?;
    Ok(weak_because)
}

/// The cgroups that the same tasks are in, in the other hierarchy: those that
/// hold no other task.
fn others(targets: &[Cgroup]) -> Vec<Cgroup> {
    let mut found: Vec<Cgroup> = Vec::new();
    for target in targets {
        let Ok(threads) = target.threads() else {
            continue;
        };
        let Some(first) = threads.first() else {
            continue;
        };
        for other in cgroup::of_pid(*first).unwrap_or_default() {
            let is_known = targets
                .iter()
                .chain(&found)
                .any(|known| known.root_key() == other.root_key());
            let is_same = other
                .threads()
                .is_ok_and(|others| others.iter().all(|thread| threads.contains(thread)));
            if !is_known && is_same {
                found.push(other);
            }
        }
    }
    found
}

/// A guard that has ended.
pub struct Ended {
    /// What became of it.
    pub status: Status,
    /// Its targets, by an identity that no other cgroup gets. (A name can be another's by now.)
    pub targets: Vec<CgroupKey>,
}

/// What has become of the guards that have ended since this was asked.
///
/// # Errors
/// When the maps cannot be read.
pub fn take_ended() -> Result<Vec<Ended>, Error> {
    let lock = Locked::wait()?;
    let Some(mut maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    let entries = maps.ended.entries()?;
    // The marks of those that somebody has ended are gone.
    let mut targets: BTreeMap<GuardId, Vec<_>> = BTreeMap::new();
    if !entries.is_empty() && maps.control(control::STALE, 0, &[])? > 0 {
        for (key, id) in maps.targets.entries()? {
            targets.entry(id).or_default().push(key);
        }
    }
    let mut ended = Vec::new();
    for (id, entry) in &entries {
        let targets = targets.remove(id).unwrap_or_else(|| vec![entry.target]);
        let seen = Seen::of_one(&maps, *id, entry, targets.clone())?;
        let status = seen.status(&maps, *id, entry)?;
        ended.push(Ended { status, targets });
        remove(&mut maps.ended, "ENDED", id)?;
    }
    forget(&mut maps, entries)?;
    reconcile(&mut maps)?;
    ended.sort_by_key(|ended: &Ended| ended.status.id);
    Ok(ended)
}
