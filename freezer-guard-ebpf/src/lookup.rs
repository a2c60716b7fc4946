//! Which guard covers a cgroup or a task, found through the kernel's pointers.

use core::ffi::c_void;

use freezer_guard_abi::{
    Action, Actor, AncestorKey, CgroupKey, GuardEntry, GuardId, NO_FREEZER, Object, Place,
    Protection, Stage, TaskPointer, protects_from,
};

use crate::{
    authority,
    each::{self, GO_ON, STOP},
    entry::Entry,
    kernel::{self, Pointer, offset, probe},
    maps::{ANCESTORS, FREEZER, GUARDS, TARGETS, TURNS, word},
    membership,
};

/// How the way up from a cgroup ended.
pub(crate) enum Found {
    /// At a target with this guard, which is in force.
    Guard(GuardId),
    /// At the root.
    Nobody,
    /// Further down than a program walks.
    TooDeep,
}

/// The identity of a `struct cgroup`.
#[inline(always)]
pub(crate) fn key(cgroup: Pointer) -> Option<CgroupKey> {
    let root: Pointer = probe(cgroup, offset!(cgroup_root))?;
    let node: Pointer = probe(cgroup, offset!(cgroup_kn))?;
    Some(CgroupKey::new(
        probe(root, offset!(cgroup_root_hierarchy_id))?,
        probe(node, offset!(kernfs_node_id))?,
    ))
}

/// No guard has these ids.
pub(crate) const NOBODY: GuardId = 0;
pub(crate) const TOO_DEEP: GuardId = GuardId::MAX;

/// The guard of the cgroup or of one above it.
#[inline(always)]
pub(crate) fn of_cgroup(cgroup: Pointer) -> Found {
    match covering(cgroup as u64) {
        NOBODY => Found::Nobody,
        TOO_DEEP => Found::TooDeep,
        id => Found::Guard(id),
    }
}

/// Returns whether [`Found::TooDeep`] refuses the current task: a guard may cover the
/// cgroup. Otherwise a user could keep root from his tasks by the depth of his cgroups.
#[inline(always)]
pub(crate) fn too_deep_for_current() -> bool {
    !authority::is_over_all_users()
}

/// The same as a number. A global function, which the verifier walks once, and not wherever
/// it is called. So its argument must be a plain number: see [`kernel::number`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn covering(cgroup: u64) -> GuardId {
    let mut climb = Climb {
        cgroup,
        found: TOO_DEEP,
    };
    each::element(&TURNS, look_and_climb, &mut climb);
    climb.found
}

/// The way up from a cgroup.
struct Climb {
    /// Where it has come to.
    cgroup: u64,
    /// [`NOBODY`] at the root, [`TOO_DEEP`] on the way.
    found: GuardId,
}

extern "C" fn look_and_climb(
    _: *const c_void,
    _: *const u32,
    _: *mut u8,
    climb: *mut Climb,
) -> u64 {
    // SAFETY: `lookup` passes it, from its own stack.
    let climb = unsafe { &mut *climb };
    let cgroup = climb.cgroup as Pointer;
    let Some(key) = key(cgroup) else { return STOP };
    // The mark of a guard that has ended must not hide another guard further up.
    if let Some(id) = word(&TARGETS, key)
        && Entry::of(id).is_some()
    {
        climb.found = id;
        return STOP;
    }
    match parent(cgroup) {
        Some(above) => {
            climb.cgroup = above as u64;
            GO_ON
        }
        None => {
            climb.found = NOBODY;
            STOP
        }
    }
}

/// The cgroup above a cgroup.
#[inline(always)]
pub(crate) fn parent(cgroup: Pointer) -> Option<Pointer> {
    let own = offset!(cgroup_self) + offset!(cgroup_subsys_state_parent);
    let parent: Pointer = probe(cgroup, own)?;
    if parent.is_null() {
        return None;
    }
    probe(parent, offset!(cgroup_subsys_state_cgroup))
}

/// The set of cgroups (`struct css_set`) that the task is in.
#[inline(always)]
pub(crate) fn set_of(task: Pointer) -> Option<Pointer> {
    probe(task, offset!(task_struct_cgroups))
}

/// The cgroup that the task is in, in v2.
#[inline(always)]
pub(crate) fn v2_of(task: Pointer) -> Option<Pointer> {
    v2_of_set(set_of(task)?)
}

/// The cgroup that the task is in, in the hierarchy of the v1 freezer. Where
/// that is not mounted it is the root of v2.
#[inline(always)]
pub(crate) fn v1_of(task: Pointer) -> Option<Pointer> {
    v1_of_set(set_of(task)?)
}

/// The cgroup of v2 in a `struct css_set`.
#[inline(always)]
pub(crate) fn v2_of_set(set: Pointer) -> Option<Pointer> {
    probe(set, offset!(css_set_dfl_cgrp))
}

/// The cgroup in the hierarchy of the v1 freezer in a `struct css_set`.
#[inline(always)]
pub(crate) fn v1_of_set(set: Pointer) -> Option<Pointer> {
    let freezer = kernel::read_offset(&FREEZER);
    if freezer == NO_FREEZER as usize {
        return None;
    }
    let state: Pointer = probe(
        set,
        offset!(css_set_subsys) + freezer * size_of::<Pointer>(),
    )?;
    probe(state, offset!(cgroup_subsys_state_cgroup))
}

/// Returns whether the cgroup is a target of the guard, or lies below one.
#[inline(always)]
pub(crate) fn is_in_target(cgroup: Pointer, id: GuardId) -> bool {
    matches!(of_cgroup(cgroup), Found::Guard(own) if own == id)
}

/// Whether the guard covers one of the cgroups that the task is in.
#[inline(always)]
pub(crate) fn covers(id: GuardId, task: Pointer) -> bool {
    is_covered(id, kernel::number(task)) != 0
}

/// The same as numbers. A global function: see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_covered(id: GuardId, task: u64) -> u64 {
    let task = task as Pointer;
    let is = |cgroup| is_in_target(cgroup, id);
    (v2_of(task).is_some_and(is) || v1_of(task).is_some_and(is)).into()
}

/// The relation of the current task to a guard that it asks.
#[inline(always)]
pub(crate) fn actor_asking(id: GuardId) -> Actor {
    Actor::numbered(asking(id))
}

/// The same as numbers. A global function: see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn asking(id: GuardId) -> u64 {
    if membership::of_current() != Some(id)
        && Entry::of(id).is_some_and(|entry| authority::is_superior(entry.guard()))
    {
        return Actor::Superior as u64;
    }
    standing(id, covers(id, kernel::current())) as u64
}

/// The part that the kernel itself has in a signal.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Origin {
    /// None: a task sends it.
    Task = 0,
    /// An interrupt sends it, unless a task of the target has forged it: the signal of a timer
    /// (`rt_sigqueueinfo`).
    Interrupt = 1,
    /// The kernel sends it, and nobody can forge that.
    Kernel = 2,
}

impl Origin {
    /// The origin with this number; for any other number, the last.
    #[inline(always)]
    pub(crate) const fn numbered(number: u64) -> Self {
        match number {
            0 => Self::Task,
            1 => Self::Interrupt,
            _ => Self::Kernel,
        }
    }
}

/// The relation of what acts to a guard that counts what has been done. Authority does not
/// matter.
#[inline(always)]
pub(crate) fn actor_of(id: GuardId, origin: Origin) -> Actor {
    Actor::numbered(acting(id, origin as u64))
}

/// The same as numbers. A global function: see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn acting(id: GuardId, origin: u64) -> u64 {
    let is_own = covers(id, kernel::current());
    if origin == Origin::Kernel as u64 || origin == Origin::Interrupt as u64 && !is_own {
        return Actor::Kernel as u64;
    }
    standing(id, is_own) as u64
}

/// `is_own`: whether the guard covers the current task.
#[inline(always)]
fn standing(id: GuardId, is_own: bool) -> Actor {
    if membership::of_current() == Some(id) {
        Actor::Holder
    } else if !is_own {
        Actor::Outsider
    } else if kernel::is_exiting(kernel::current()) {
        Actor::Dying
    } else {
        Actor::Own
    }
}

/// Returns 1 if the holder of the guard has the task under ptrace, else 0. A global function:
/// see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_traced_by_holder(task: u64, id: GuardId) -> u64 {
    let task = task as Pointer;
    let traced = probe::<u32>(task, offset!(task_struct_ptrace)).is_some_and(|flags| flags != 0);
    // `parent` is the tracer while there is one.
    let tracer = probe::<TaskPointer>(task, offset!(task_struct_parent));
    (traced && tracer.is_some_and(|tracer| membership::of(tracer) == Some(id))).into()
}

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

/// The same as numbers. A global function: see [`covering`].
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

/// The same as numbers. A global function: see [`covering`].
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
    // SAFETY: a key and a value of `GUARDS`, and what `first_refusing` passes from its stack.
    let (id, guard, search) = unsafe { (*id, &*guard, &mut *search) };
    if !search.is_met_by(id, guard) {
        return GO_ON;
    }
    search.found = id;
    STOP
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
    // SAFETY: a key and a value of `GUARDS`, and what `any_below` passes from its stack.
    let (id, guard, search) = unsafe { (*id, &*guard, &mut *search) };
    if id == search.writer || !guard.is_in_force() || !lies_below(id, search.cgroup) {
        return GO_ON;
    }
    search.found = id;
    STOP
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
}

/// The hierarchy, and what else a global function is told in the same number.
#[inline(always)]
pub(crate) fn pack(cgroup: CgroupKey, more: u64) -> u64 {
    u64::from(cgroup.hierarchy_id) | more << 32
}
