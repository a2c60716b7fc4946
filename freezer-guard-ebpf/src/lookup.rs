//! Which guard covers a cgroup or a task, found through the kernel's pointers.

use core::ffi::c_void;

use freezer_guard_abi::{Actor, CgroupKey, GuardEntry, GuardId, NO_FREEZER, TaskPointer};

use crate::{
    authority,
    each::{self, GO_ON, STOP},
    entry::Entry,
    kernel::{self, Pointer, offset, probe},
    maps::{FREEZER, TARGETS, TURNS, word},
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
    // SAFETY: `covering` passes it, from its own stack.
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
    let state = state_of_freezer(set, offset!(css_set_subsys))?;
    probe(state, offset!(cgroup_subsys_state_cgroup))
}

/// The `struct cgroup_subsys_state` of the v1 freezer. `subsystems`: where the array of such states
/// is in what `owner` points to.
#[inline(always)]
pub(crate) fn state_of_freezer(owner: Pointer, subsystems: usize) -> Option<Pointer> {
    let freezer = kernel::read_constant(&FREEZER);
    if freezer == NO_FREEZER as usize {
        return None;
    }
    probe(owner, subsystems + freezer * size_of::<Pointer>())
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
    standing(id, is_own(id)) as u64
}

/// Whether the current task is one of those that the guard protects.
#[inline(always)]
fn is_own(id: GuardId) -> bool {
    let current = kernel::current();
    covers(id, current) || is_traced_by_holder(kernel::number(current), id) != 0
}

/// The part that the kernel itself has in a signal.
#[derive(Clone, Copy)]
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

/// The relation of the current task, or of the kernel itself, to a guard that counts their act.
/// Authority does not matter.
#[inline(always)]
pub(crate) fn actor_of(id: GuardId, origin: Origin) -> Actor {
    Actor::numbered(acting(id, origin as u64))
}

/// The same as numbers. A global function: see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn acting(id: GuardId, origin: u64) -> u64 {
    let is_own = is_own(id);
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
    (guard_of_tracer(task as Pointer) == Some(id)).into()
}

/// The guard whose holder has the task under ptrace.
#[inline(always)]
fn guard_of_tracer(task: Pointer) -> Option<GuardId> {
    let traced = probe::<u32>(task, offset!(task_struct_ptrace)).is_some_and(|flags| flags != 0);
    // `parent` is the tracer while there is one.
    let tracer = probe::<TaskPointer>(task, offset!(task_struct_parent));
    membership::of(tracer.filter(|_| traced)?)
}

/// The guard without a target whose holder has seized the task, or [`NOBODY`]. A global function:
/// see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn seized_by(task: u64) -> GuardId {
    guard_of_tracer(task as Pointer)
        .filter(|id| Entry::of(*id).is_some_and(|entry| entry.flags() & GuardEntry::SEIZES != 0))
        .unwrap_or(NOBODY)
}
