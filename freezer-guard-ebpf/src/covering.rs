//! Which guard covers a cgroup or a task, found through the kernel's pointers.

use freezer_guard_ebpf::{
    Actor, AncestorKey, CHUNK, CHUNKS, CgroupKey, GuardId, MAX_DEPTH, NO_FREEZER, Protection,
    TaskPointer,
};

use crate::{
    atomic::Word,
    freezer,
    kernel::{self, Pointer, offset, opaque, probe},
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

/// No guard has these ids.
pub(crate) const NOBODY: GuardId = 0;
const TOO_DEEP: GuardId = GuardId::MAX;

/// The guard of the cgroup or of one above it.
#[inline(always)]
pub(crate) fn of_cgroup(cgroup: Pointer) -> Covering {
    match covering(cgroup as u64) {
        NOBODY => Covering::Nobody,
        TOO_DEEP => Covering::TooDeep,
        id => Covering::Guard(id),
    }
}

/// The same as a number. A global function: see [`first_below`]. So its argument must
/// not be a pointer for the verifier: see [`untyped`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn covering(cgroup: u64) -> GuardId {
    let mut cgroup = cgroup as Pointer;
    for _ in 0..MAX_DEPTH {
        let Some(key) = key(cgroup) else {
            return NOBODY;
        };
        if let Some(id) = TARGETS.get_ptr(key) {
            // SAFETY: a map value the verifier has seen checked.
            let id = unsafe { *id };
            // What a dead guard has left must not hide one further up.
            if guard(id).is_some() {
                return id;
            }
        }
        match parent(cgroup) {
            Some(above) => cgroup = above,
            None => return NOBODY,
        }
    }
    TOO_DEEP
}

/// A cgroup that is an argument of a hook, and so a pointer for the verifier: the same
/// one as a number that it knows nothing of, out of what it points to.
#[inline(always)]
pub(crate) fn untyped(cgroup: Pointer) -> Pointer {
    let own = offset!(cgroup_self) + offset!(cgroup_subsys_state_cgroup);
    probe(cgroup, own).unwrap_or(core::ptr::null())
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
    minds_any(id, protection.bit(), writer)
}

/// The same for the bits of protections: without any, whether it is another guard
/// that is in force.
#[inline(always)]
fn minds_any(id: GuardId, protections: u64, writer: Option<GuardId>) -> bool {
    writer != Some(id)
        && guard(id).is_some_and(|guard| {
            // SAFETY: a map value the verifier has seen checked.
            let allowed = unsafe { (*guard).allowed };
            allowed & protections == 0
        })
}

/// The guards with a place in each chunk of places.
static OCCUPIED: [Word; CHUNKS as usize] = [const { Word::new() }; CHUNKS as usize];

/// The guards with a place in the chunk that this place is in.
#[inline(always)]
pub(crate) fn occupied(place: u64) -> &'static Word {
    let chunk = (place / u64::from(CHUNK)) % u64::from(CHUNKS);
    // SAFETY: it is below the length. (The compiler, who knows that too, would leave the
    // remainder out that the verifier has to see.)
    unsafe { OCCUPIED.get_unchecked(opaque(chunk as u32) as usize % CHUNKS as usize) }
}

/// The first of the guards below a cgroup that minds (see [`minds_any`]), if any.
#[inline(always)]
pub(crate) fn below(
    cgroup: CgroupKey,
    protections: u64,
    writer: Option<GuardId>,
) -> Option<GuardId> {
    let last = last_below(cgroup)?;
    if minds_any(last, protections, writer) {
        return Some(last);
    }
    let packed = pack(cgroup, protections);
    match first_below(packed, cgroup.kernfs_id, writer.unwrap_or(NOBODY)) {
        NOBODY => None,
        id => Some(id),
    }
}

/// The last guard that was begun below a cgroup, if any: it may have ended.
#[inline(always)]
pub(crate) fn last_below(cgroup: CgroupKey) -> Option<GuardId> {
    // SAFETY: a map value the verifier has seen checked.
    ANCESTORS
        .get_ptr(AncestorKey::new(cgroup, AncestorKey::ANY))
        .map(|last| unsafe { *last })
}

// What follows are global functions, which the verifier walks once each and not wherever
// they are called: so loops do not multiply. All they can take is numbers.

/// The one with the lowest place, or [`NOBODY`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_below(packed: u64, kernfs_id: u64, writer: u64) -> GuardId {
    for chunk in 0..u64::from(CHUNKS) {
        if occupied(chunk * u64::from(CHUNK)).get() != 0 {
            let id = first_in_chunk(packed, kernfs_id, chunk, writer);
            if id != NOBODY {
                return id;
            }
        }
    }
    NOBODY
}

/// The same in one chunk of places.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_in_chunk(packed: u64, kernfs_id: u64, chunk: u64, writer: u64) -> GuardId {
    for offset in 0..u64::from(CHUNK) {
        let place = chunk * u64::from(CHUNK) + offset;
        if let Some(id) = minding_at(packed, kernfs_id, place, writer) {
            return id;
        }
    }
    NOBODY
}

/// Tells every one of these guards that it was frozen or thawed. (If they are more than fit
/// into `VIOLATORS` and the readers' rings, those count it, and the readers know that they
/// have missed something.) A global function: see [`first_below`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn disturb_below(packed: u64, kernfs_id: u64, writer: u64) -> u64 {
    for chunk in 0..u64::from(CHUNKS) {
        if occupied(chunk * u64::from(CHUNK)).get() != 0 {
            disturb_chunk(packed, kernfs_id, chunk, writer);
        }
    }
    0
}

/// The same in one chunk of places.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn disturb_chunk(packed: u64, kernfs_id: u64, chunk: u64, writer: u64) -> u64 {
    for offset in 0..u64::from(CHUNK) {
        let place = chunk * u64::from(CHUNK) + offset;
        if let Some(id) = minding_at(packed, kernfs_id, place, writer) {
            freezer::disturb(id, packed, kernfs_id);
        }
    }
    0
}

/// The hierarchy, and what else a global function is told in the same number.
#[inline(always)]
pub(crate) fn pack(cgroup: CgroupKey, more: u64) -> u64 {
    u64::from(cgroup.hierarchy_id) | more << 32
}

/// The guard with this place, if it is below the cgroup and minds.
#[inline(always)]
fn minding_at(packed: u64, kernfs_id: u64, place: u64, writer: u64) -> Option<GuardId> {
    let cgroup = CgroupKey::new(packed as u32, kernfs_id);
    let id = ANCESTORS.get_ptr(AncestorKey::new(cgroup, place))?;
    // SAFETY: a map value the verifier has seen checked.
    let id = unsafe { *id };
    minds_any(id, packed >> 32, Some(writer)).then_some(id)
}
