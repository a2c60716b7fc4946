//! Which guard covers a cgroup or a task, found through the kernel's pointers.

use freezer_guard_ebpf::{
    Actor, AncestorKey, CgroupKey, Guard, GuardId, MAX_DEPTH, MAX_GUARDS, NO_FREEZER, Protection,
    TaskPointer,
};

use crate::{
    kernel::{self, Pointer, offset, probe},
    maps::{ANCESTORS, FREEZER, TARGETS, guard},
    membership,
};

/// How the way up from a cgroup ended.
pub(crate) enum Covering {
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

/// The guard of the cgroup or of one above it.
#[inline(never)]
pub(crate) fn of_cgroup(cgroup: Pointer) -> Covering {
    let mut cgroup = cgroup;
    for _ in 0..MAX_DEPTH {
        let Some(key) = key(cgroup) else {
            return Covering::Nobody;
        };
        if let Some(id) = TARGETS.get_ptr(key) {
            // SAFETY: a map value the verifier has seen checked.
            let id = unsafe { *id };
            // What a dead guard has left must not hide one further up.
            if guard(id).is_some() {
                return Covering::Guard(id);
            }
        }
        match parent(cgroup) {
            Some(above) => cgroup = above,
            None => return Covering::Nobody,
        }
    }
    Covering::TooDeep
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

/// The cgroup that the task is in, in v2.
#[inline(always)]
pub(crate) fn v2_of(task: Pointer) -> Option<Pointer> {
    let set: Pointer = probe(task, offset!(task_struct_cgroups))?;
    probe(set, offset!(css_set_dfl_cgrp))
}

/// The cgroup that the task is in, in the hierarchy of the v1 freezer. Where
/// that is not mounted it is the root of v2.
#[inline(always)]
pub(crate) fn v1_of(task: Pointer) -> Option<Pointer> {
    let freezer = kernel::read_offset(&FREEZER);
    if freezer == NO_FREEZER as usize {
        return None;
    }
    let set: Pointer = probe(task, offset!(task_struct_cgroups))?;
    let state: Pointer = probe(
        set,
        offset!(css_set_subsys) + freezer * size_of::<Pointer>(),
    )?;
    probe(state, offset!(cgroup_subsys_state_cgroup))
}

/// Whether the guard covers one of the cgroups that the task is in.
#[inline(always)]
fn covers(id: GuardId, task: Pointer) -> bool {
    let is = |cgroup| matches!(of_cgroup(cgroup), Covering::Guard(own) if own == id);
    v2_of(task).is_some_and(is) || v1_of(task).is_some_and(is)
}

/// What the current task is to the guard.
#[inline(always)]
pub(crate) fn actor(id: GuardId) -> Actor {
    if membership::of_current() == Some(id) {
        Actor::Holder
    } else if covers(id, kernel::current()) {
        Actor::Own
    } else {
        Actor::Outsider
    }
}

/// Whether the holder of the guard has the task under ptrace.
#[inline(always)]
pub(crate) fn is_traced_by_holder(task: Pointer, id: GuardId) -> bool {
    let traced = probe::<u32>(task, offset!(task_struct_ptrace)).is_some_and(|flags| flags != 0);
    // `parent` is the tracer while there is one.
    let tracer = probe::<TaskPointer>(task, offset!(task_struct_parent));
    traced && tracer.is_some_and(|tracer| membership::of(tracer) == Some(id))
}

/// Whether the guard is in force, this protection was not lifted and `writer`
/// is not its holder.
#[inline(always)]
pub(crate) fn minds(id: GuardId, protection: Protection, writer: Option<GuardId>) -> bool {
    writer != Some(id)
        && guard(id).is_some_and(|guard| {
            // SAFETY: a map value the verifier has seen checked.
            Guard::protects(unsafe { (*guard).allowed }, protection)
        })
}

/// The first of the guards below a cgroup that `which` holds for.
#[inline(always)]
pub(crate) fn below(cgroup: CgroupKey, mut which: impl FnMut(GuardId) -> bool) -> Option<GuardId> {
    for index in 0..u64::from(MAX_GUARDS) {
        // SAFETY: a map value the verifier has seen checked.
        let id = unsafe { *ANCESTORS.get_ptr(AncestorKey { cgroup, index })? };
        if which(id) {
            return Some(id);
        }
    }
    None
}
