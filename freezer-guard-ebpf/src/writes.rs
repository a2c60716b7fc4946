//! Which guards object to a write to a cgroup: the one that covers it, and those below it.

use core::ffi::c_void;

use freezer_guard_abi::{
    Action, Actor, AncestorKey, CgroupKey, GuardEntry, GuardId, Object, Place, Protection, Stage,
    protects_from,
};

use crate::{
    authority,
    each::{self, GO_ON, STOP},
    entry::Entry,
    lookup::NOBODY,
    maps::{ANCESTORS, GUARDS, word},
};

/// Returns whether the guard objects to a write of the current task, a member of `writer`, to a
/// cgroup in this place. The cgroup of the writer does not matter.
#[inline(always)]
fn objects(id: GuardId, guard: &GuardEntry, write: Action, writer: GuardId) -> bool {
    let actor = if writer == id {
        Actor::Holder
    } else if matches!(write.stage, Stage::Asked) && authority::is_superior(guard) {
        Actor::Superior
    } else {
        Actor::Outsider
    };
    protects_from(guard, actor, write)
}

/// A write to a cgroup that a task asks for.
const fn asked(protection: Protection, place: Place) -> Action {
    Action {
        protection,
        object: Object::Cgroup(place),
        stage: Stage::Asked,
    }
}

/// A write to a cgroup that has been done.
const fn done(protection: Protection, place: Place) -> Action {
    Action {
        stage: Stage::Done,
        ..asked(protection, place)
    }
}

/// Returns whether the guard refuses the current task, a member of `writer`, a write to a cgroup
/// inside its target.
#[inline(always)]
pub(crate) fn refuses_inside(id: GuardId, protection: Protection, writer: GuardId) -> bool {
    is_refused_inside(id, protection as u64, writer) != 0
}

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_refused_inside(id: GuardId, protection: u64, writer: GuardId) -> u64 {
    let Some(entry) = Entry::of(id) else { return 0 };
    let write = asked(Protection::numbered(protection as u32), Place::Inside);
    objects(id, entry.guard(), write, writer).into()
}

/// Returns whether the guard counts a write of the current task, a member of `writer`, to a cgroup
/// inside its target.
#[inline(always)]
pub(crate) fn counts_inside(id: GuardId, protection: Protection, writer: GuardId) -> bool {
    Entry::of(id).is_some_and(|entry| {
        let write = done(protection, Place::Inside);
        objects(id, entry.guard(), write, writer)
    })
}

/// Returns whether the guard lies below the cgroup and counts a write of the current task, a member
/// of `writer`, to that cgroup.
#[inline(always)]
pub(crate) fn counts_above(
    id: GuardId,
    guard: &GuardEntry,
    (cgroup, protection): (CgroupKey, Protection),
    writer: GuardId,
) -> bool {
    objects(id, guard, done(protection, Place::Above), writer) && lies_below(id, cgroup)
}

#[inline(always)]
fn lies_below(id: GuardId, cgroup: CgroupKey) -> bool {
    ANCESTORS.get_ptr(AncestorKey::new(cgroup, id)).is_some()
}

/// The last guard that was begun below a cgroup, if any: it may have ended.
#[inline(always)]
pub(crate) fn last_below(cgroup: CgroupKey) -> Option<GuardId> {
    word(&ANCESTORS, AncestorKey::new(cgroup, AncestorKey::ANY))
}

/// A guard below a cgroup that refuses the current task, a member of `writer`, a write to that
/// cgroup. [`Place::Inside`]: a write to the cgroup of a task that may be in its target.
#[inline(always)]
pub(crate) fn refuses_below(
    cgroup: CgroupKey,
    protection: Protection,
    place: Place,
    writer: GuardId,
) -> Option<GuardId> {
    last_below(cgroup)?;
    let write = match place {
        Place::Inside => protection as u64,
        Place::Above => protection as u64 | Search::ABOVE,
    };
    match first_refusing(pack(cgroup, write), cgroup.kernfs_id, writer) {
        NOBODY => None,
        id => Some(id),
    }
}

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_refusing(packed: u64, kernfs_id: u64, writer: GuardId) -> GuardId {
    let mut search = Search {
        cgroup: CgroupKey::new(packed as u32, kernfs_id),
        write: packed >> 32,
        writer,
        found: NOBODY,
    };
    // Nearly always it is the last: then there is no need to look at all guards.
    if let Some(last) = last_below(search.cgroup)
        && let Some(entry) = Entry::of(last)
        && search.is_met_by(last, entry.guard())
    {
        return last;
    }
    each::element(&GUARDS, look_below, &mut search);
    search.found
}

extern "C" fn look_below(
    _: *const c_void,
    id: *const GuardId,
    guard: *mut GuardEntry,
    search: *mut Search,
) -> u64 {
    // SAFETY: a key and a value of `GUARDS`, and the search of `first_refusing`, from its stack.
    let (id, guard, search) = unsafe { (*id, &*guard, &mut *search) };
    search.stop_if(search.is_met_by(id, guard), id)
}

/// Any guard below a cgroup but `writer`.
#[inline(always)]
pub(crate) fn any_below(cgroup: CgroupKey, writer: GuardId) -> Option<GuardId> {
    last_below(cgroup)?;
    let mut search = Search {
        cgroup,
        write: 0,
        writer,
        found: NOBODY,
    };
    each::element(&GUARDS, look_for_any_below, &mut search);
    (search.found != NOBODY).then_some(search.found)
}

extern "C" fn look_for_any_below(
    _: *const c_void,
    id: *const GuardId,
    guard: *mut GuardEntry,
    search: *mut Search,
) -> u64 {
    // SAFETY: a key and a value of `GUARDS`, and the search of `any_below`, from its stack.
    let (id, guard, search) = unsafe { (*id, &*guard, &mut *search) };
    let is_other = id != search.writer && guard.is_in_force();
    search.stop_if(is_other && lies_below(id, search.cgroup), id)
}

/// A search among all guards.
struct Search {
    cgroup: CgroupKey,
    /// A [`Protection`], and [`Search::ABOVE`].
    write: u64,
    writer: GuardId,
    found: GuardId,
}

impl Search {
    const ABOVE: u64 = 1 << 8;

    /// Whether this guard refuses the write.
    #[inline(always)]
    fn is_met_by(&self, id: GuardId, guard: &GuardEntry) -> bool {
        let place = match self.write & Self::ABOVE {
            0 => Place::Inside,
            _ => Place::Above,
        };
        let write = asked(Protection::numbered(self.write as u32 & 0xff), place);
        objects(id, guard, write, self.writer) && lies_below(id, self.cgroup)
    }

    /// The answer of a callback: it has found this guard, or goes on.
    #[inline(always)]
    fn stop_if(&mut self, is_found: bool, id: GuardId) -> u64 {
        if !is_found {
            return GO_ON;
        }
        self.found = id;
        STOP
    }
}

/// The hierarchy in one number with something else, for a global function.
#[inline(always)]
pub(crate) fn pack(cgroup: CgroupKey, more: u64) -> u64 {
    u64::from(cgroup.hierarchy_id) | more << 32
}
