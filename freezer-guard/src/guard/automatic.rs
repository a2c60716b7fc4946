//! Guards that nobody asks for: the kernel side notices a checkpointer and begins
//! them; what user space has to do for that is here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    time::Duration,
};

use freezer_guard_abi::{
    CgroupKey, FileName, GuardEntry, GuardId, Level, LogLevel, MAX_ENDED, Protection,
};

use super::{
    Error, PidFd, Status,
    around::mark_around,
    entries::{holder_pids, is_idle, targets},
    freezer::Freezer,
    level,
    lineage::Lineage,
    loading::{Loaded, ensure_loaded},
    marks::mark_ancestors,
    now,
    reconcile::{
        drop_ended_one, expected, forget, hierarchies_in_use, hierarchies_of_guards,
        hierarchies_there, keep_unread, reconcile, sweep,
    },
    restoring::{Found, open, restore},
    status::{Snapshot, status},
    store::GuardStore,
};
use crate::{
    cgroup,
    kernel::{self, Locked, Map as _, Maps},
};

/// What automatic guards are to be like.
#[derive(Debug, Clone)]
pub struct Requirements {
    /// The names of the programs that are checkpointers.
    pub names: Vec<FileName>,
    /// The protections that are lifted.
    pub allowed: Vec<Protection>,
    /// Whether checkpointers of users, who cannot dump the processes of others, have guards
    /// too.
    pub users: bool,
    /// Whether CRIU can complete an image after a violation. Otherwise its dump fails, and the
    /// container goes on.
    pub completes_violated: bool,
}

impl Default for Requirements {
    fn default() -> Self {
        Self {
            names: default_names(),
            allowed: Vec::new(),
            users: false,
            completes_violated: false,
        }
    }
}

/// The name of CRIU's program.
pub fn default_names() -> Vec<FileName> {
    FileName::new(CRIU).into_iter().collect()
}

impl Requirements {
    fn flags(&self) -> u64 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.users, GuardEntry::BY_USER)
            | flag(!self.completes_violated, GuardEntry::FAILS_DUMP)
    }
}

/// Loads everything, so that a guard that begins finds it there, and if asked
/// to, watches out for checkpointers: with what these guards are to be like. To be
/// called again whenever that has changed, or programs may be gone. `log`: how much they
/// tell. Returns why it does not go further.
///
/// # Errors
/// When the kernel cannot do it, or another version holds guards.
pub fn watch(
    automatic: Option<&Requirements>,
    at_most: Level,
    log: LogLevel,
) -> Result<Vec<kernel::Error>, Error> {
    let lock = Locked::wait()?;
    let Loaded {
        maps, mut reasons, ..
    } = ensure_loaded(&lock, at_most, Some(log), true)?;
    let template = match automatic {
        Some(wanted) => {
            maps.set_checkpointers(&wanted.names)?;
            reasons.extend(lock.watch(hierarchies_there()?)?);
            GuardEntry {
                members: 1,
                allowed: level::bits(&wanted.allowed),
                flags: wanted.flags(),
                // Until more is attached.
                levels: level::numbers(watched_levels(&lock)?),
                missed_before: GuardEntry::UNKNOWN,
                ..GuardEntry::default()
            }
        }
        None => {
            reasons.extend(lock.load_for(hierarchies_there()?)?);
            GuardEntry::default()
        }
    };
    maps.set_automatic(template)?;
    sweep_and_detach(&lock, &maps, automatic.is_some() || has_entries(&maps)?)?;
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
    let Some(maps) = lock.open()? else {
        return Ok(());
    };
    maps.set_automatic(GuardEntry::default())?;
    reconcile(&maps)?;
    sweep(&maps)?;
    // Nobody would detach what a checkpointer is expected to need.
    let watch = has_entries(&maps)?;
    Ok(lock.detach_unneeded(hierarchies_of_guards(&maps)?, watch)?)
}

/// Whether there is any guard or candidate. Its members have to be counted: a service that comes
/// back finds the candidates, and no entry outlives its last member.
fn has_entries(store: &dyn GuardStore) -> Result<bool, Error> {
    Ok(store.guards().find(&|_, _| true)?.is_some())
}

/// Removes what has ended, and detaches what no guard needs, nor the watch if
/// there is to be one.
fn sweep_and_detach(lock: &Locked, store: &dyn GuardStore, watch: bool) -> Result<(), Error> {
    sweep(store)?;
    Ok(lock.detach_unneeded(hierarchies_in_use(store)?, watch)?)
}

/// Attaches what refuses before the checkpointers that have been executed a short time ago freeze a
/// cgroup. [`arm`] tells what the kernel does not attach.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn expect() -> Result<(), Error> {
    let lock = Locked::wait()?;
    let Some(maps) = lock.open()? else {
        return Ok(());
    };
    let candidates = expected(&maps)?;
    if candidates.is_empty() {
        return Ok(());
    }
    let hierarchies = hierarchies_in_use(&maps)?;
    lock.attach(hierarchies)?;
    let levels = level::numbers(lock.levels(hierarchies));
    let store: &dyn GuardStore = &maps;
    for id in candidates {
        // `arm` sets it.
        store.arm(id, levels, GuardEntry::UNKNOWN)?;
    }
    Ok(())
}

/// Returns whether programs that refuse are attached for a good reason: a guard is in force, or a
/// checkpointer is expected to freeze a cgroup.
///
/// # Errors
/// When the maps cannot be read.
pub fn is_any_expected() -> Result<bool, Error> {
    match Locked::wait()?.open()? {
        Some(maps) => Ok(!is_idle(&maps)? || !expected(&maps)?.is_empty()),
        None => Ok(false),
    }
}

/// Kills the checkpointer of an automatic guard, and no other program that it has started or
/// restored. Returns its processes.
///
/// # Errors
/// When the kernel cannot be asked, or does not permit it.
pub fn kill_holder(id: GuardId) -> Result<Vec<u32>, Error> {
    let lock = Locked::wait()?;
    let Some(maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    let processes: Vec<_> = holder_pids(&maps, id)?
        .into_iter()
        .filter_map(|pid| PidFd::open(pid).ok())
        .collect();
    // A pid may have been another process's by the time it was opened.
    let mut pids = holder_pids(&maps, id)?;
    let names = checkpointers_of(&maps)?;
    pids.retain(|pid| {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        is_named(&names, &exe)
    });
    let mut killed = Vec::new();
    for process in processes {
        if let Ok(pid) = process.pid()
            && pids.contains(&pid)
        {
            process.kill();
            killed.push(pid);
        }
    }
    Ok(killed)
}

/// The name that the program of a checkpointer has if nothing is configured.
pub const CRIU: &str = "criu";

/// The names that the programs of checkpointers have for the service, if that has run.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn checkpointers() -> Result<Vec<FileName>, Error> {
    match Locked::wait()?.open()? {
        Some(maps) => checkpointers_of(&maps),
        None => Ok(default_names()),
    }
}

fn checkpointers_of(maps: &Maps) -> Result<Vec<FileName>, Error> {
    let names: Vec<_> = maps
        .checkpointers
        .entries()?
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    Ok(match names.is_empty() {
        true => default_names(),
        false => names,
    })
}

/// Returns whether the file has one of the names.
pub fn is_named(names: &[FileName], file: &Path) -> bool {
    let own = file.file_name().unwrap_or_default().as_bytes();
    names.iter().any(|name| name.is(own))
}

/// A guard that has begun.
#[derive(Debug)]
pub struct Begun {
    /// What it is now.
    pub status: Status,
    /// Why it does not go further.
    pub weak_because: Vec<kernel::Error>,
    /// How long an automatic guard refused less than it does now. Zero, if the programs were
    /// attached before it began.
    pub unarmed: Option<Duration>,
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
    let Some(maps) = lock.open()? else {
        return Ok(Vec::new());
    };
    let store: &dyn GuardStore = &maps;
    let mut armed = Vec::new();
    // One that has several targets has begun several times.
    for id in &ids.iter().copied().collect::<BTreeSet<_>>() {
        match store.guard(*id)? {
            Some(entry) if entry.is_candidate() => {}
            Some(entry) if !entry.is_automatic() => armed.push((*id, Ok(Armed::default()))),
            Some(entry) => armed.push((*id, arm_one(&lock, store, *id, &entry))),
            None => {}
        }
    }
    let mut seen = match armed.len() {
        0 | 1 => None,
        _ => Some(Snapshot::of_all(store)?),
    };
    let mut begun = Vec::new();
    for (id, armed) in armed {
        let Some(entry) = store.guard(id)? else {
            continue;
        };
        let status = match &mut seen {
            Some(seen) => seen
                .remove(&id)
                .unwrap_or_default()
                .status(store, id, &entry)?,
            None => status(store, id, &entry)?,
        };
        begun.push((
            id,
            armed.map(|armed| Begun {
                status,
                weak_because: armed.weak_because,
                unarmed: armed.unarmed,
            }),
        ));
    }
    Ok(begun)
}

/// See [`Begun`].
#[derive(Default)]
struct Armed {
    weak_because: Vec<kernel::Error>,
    unarmed: Option<Duration>,
}

fn arm_one(
    lock: &Locked,
    store: &dyn GuardStore,
    id: GuardId,
    entry: &GuardEntry,
) -> Result<Armed, Error> {
    if entry.flags & GuardEntry::SEIZES == 0 {
        // Somebody who tidied up may have taken it for another one's.
        store.targets().add(entry.target, id)?;
    }
    // One may be gone by now.
    let targets: Vec<_> = targets(store, id)?.into_iter().filter_map(open).collect();
    let lineages = Lineage::of_all(&targets)?;
    let above = lineages.iter().flat_map(|target| target.above.clone());
    mark_ancestors(store, above.chain(cgroup::hybrid_roots()?), id)?;
    let by_user = entry.flags & GuardEntry::BY_USER != 0;
    let targets: Vec<_> = targets.iter().filter(|_| !by_user).collect();
    // One may be gone by now, or another guard's.
    for other in cgroup::others(&targets).unwrap_or_default() {
        if let Ok(lineage) = Lineage::of(&other) {
            match mark_around(store, id, &other, &lineage) {
                Err(Error::Guarded { .. }) => {}
                marked => marked?,
            }
        }
    }
    let hierarchies = hierarchies_in_use(store)?;
    let weak_because = lock.attach(hierarchies)?;
    let levels = level::numbers(lock.levels(hierarchies));
    store.arm(id, levels, store.missed()?)?;
    let unarmed = match levels == entry.levels {
        true => Duration::ZERO,
        false => Duration::from_nanos(now().saturating_sub(entry.begun_ns)),
    };
    Ok(Armed {
        weak_because,
        unarmed: Some(unarmed),
    })
}

/// A guard that has ended.
pub struct Ended {
    /// Its last status.
    pub status: Status,
    /// The targets that were thawed just now, because their holder died and left them frozen.
    pub thawed: Vec<CgroupKey>,
    /// The reason why a target could not be thawed, for instance another guard. The same guard
    /// is returned again the next time, until all its targets are thawed.
    pub not_thawed: Option<Error>,
}

/// Returns the guards that have ended since the last call. If a holder has died, this thaws
/// the cgroups that were frozen for its guard.
///
/// # Errors
/// When the maps cannot be read.
pub fn take_ended() -> Result<Vec<Ended>, Error> {
    let lock = Locked::wait()?;
    match lock.open()? {
        Some(maps) => take_ended_of(&maps, &open),
        None => Ok(Vec::new()),
    }
}

pub(super) fn take_ended_of<F: Freezer>(
    store: &dyn GuardStore,
    open: &dyn Fn(CgroupKey) -> Option<F>,
) -> Result<Vec<Ended>, Error> {
    keep_unread(store)?;
    let entries = store.ended().entries()?;
    let was_full = entries.len() >= MAX_ENDED as usize;
    // A mark goes when a guard is ended properly, and when somebody writes the freezer after its end.
    let mut targets: BTreeMap<GuardId, Vec<_>> = BTreeMap::new();
    if !entries.is_empty() {
        for (key, id) in store.targets().entries()? {
            targets.entry(id).or_default().push(key);
        }
    }
    let (mut ended, mut over) = (Vec::new(), Vec::new());
    for (id, entry) in &entries {
        // By an identity that no other cgroup gets: a name can be another's by now.
        let targets = targets.remove(id).unwrap_or_default();
        let named = match targets.is_empty() {
            true => vec![entry.target],
            false => targets.clone(),
        };
        let seen = Snapshot::of_one(store, *id, entry, named)?;
        let status = seen.status(store, *id, entry)?;
        let mut frozen = Vec::new();
        for key in targets.into_iter().filter(|_| status.froze) {
            // Somebody may have written it since.
            if store.targets().get(&key)? == Some(*id) {
                frozen.extend(open(key));
            }
        }
        let (thawed, result) = restore(frozen.iter().map(|freezer| (freezer, Found::Thawed)));
        if result.is_ok() {
            // Not before the thaw: if we die in between, the next daemon does it.
            drop_ended_one(store, *id, entry)?;
            over.push((*id, *entry));
        }
        ended.push(Ended {
            status,
            thawed,
            not_thawed: result.err(),
        });
    }
    let is_room = !over.is_empty();
    forget(store, over)?;
    if was_full && is_room {
        ended.extend(take_ended_of(store, open)?);
    }
    reconcile(store)?;
    ended.sort_by_key(|ended: &Ended| ended.status.id);
    Ok(ended)
}
