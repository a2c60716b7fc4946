//! Which guard covers a cgroup or a task, found through the kernel's pointers.

use core::ffi::c_void;

use freezer_guard_abi::{
    Actor, AncestorKey, CgroupKey, Guard, GuardId, NO_FREEZER, Object, Place, Protection,
    TaskPointer, denies,
};

use crate::{
    authority,
    each::{self, GO_ON, STOP},
    kernel::{self, Pointer, offset, probe},
    maps::{ANCESTORS, FREEZER, GUARDS, TARGETS, TURNS, guard},
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

/// Returns whether [`Covering::TooDeep`] refuses the current task: a guard may cover the
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
    match (guard_on(cgroup), parent(cgroup)) {
        (Some(id), _) => climb.found = id,
        (None, Some(above)) => {
            climb.cgroup = above as u64;
            return GO_ON;
        }
        (None, None) => climb.found = NOBODY,
    }
    STOP
}

/// The guard in force whose target this very cgroup is.
#[inline(always)]
fn guard_on(cgroup: Pointer) -> Option<GuardId> {
    let id = TARGETS.get_ptr(key(cgroup)?)?;
    // SAFETY: a map value the verifier has seen checked.
    let id = unsafe { *id };
    // The mark of a guard that has ended must not hide another guard further up.
    guard(id).map(|_| id)
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

/// Whether the guard covers one of the cgroups that the task is in.
#[inline(always)]
fn covers(id: GuardId, task: Pointer) -> bool {
    let is = |cgroup| matches!(of_cgroup(cgroup), Covering::Guard(own) if own == id);
    v2_of(task).is_some_and(is) || v1_of(task).is_some_and(is)
}

/// The relation of the current task to the guard. `asks`: its action is still to be permitted,
/// so authority matters.
#[inline(always)]
pub(crate) fn actor(id: GuardId, asks: bool) -> Actor {
    const HOLDER: u64 = Actor::Holder as u64;
    const SUPERIOR: u64 = Actor::Superior as u64;
    const OWN: u64 = Actor::Own as u64;
    match actor_number(id, asks.into()) {
        HOLDER => Actor::Holder,
        SUPERIOR => Actor::Superior,
        OWN => Actor::Own,
        _ => Actor::Outsider,
    }
}

/// The same as a number. A global function: see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn actor_number(id: GuardId, asks: u64) -> u64 {
    let actor = if membership::of_current() == Some(id) {
        Actor::Holder
    } else if asks != 0 && authority::yields(id) != 0 {
        Actor::Superior
    } else if covers(id, kernel::current()) {
        Actor::Own
    } else {
        Actor::Outsider
    };
    actor as u64
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

/// Whether the guard is in force, this protection was not lifted and `writer`
/// is not its holder.
#[inline(always)]
pub(crate) fn minds(id: GuardId, protection: Protection, writer: Option<GuardId>) -> bool {
    writer != Some(id)
        && guard(id).is_some_and(|guard| {
            // SAFETY: a map value the verifier has seen checked.
            objects(unsafe { &*guard }, protection.bit())
        })
}

/// Returns whether the guard refuses the current task a write to a cgroup at this place.
#[inline(always)]
pub(crate) fn refuses(
    id: GuardId,
    place: Place,
    protection: Protection,
    writer: Option<GuardId>,
) -> bool {
    minds(id, protection, writer)
        && denies(authority::outsider(id), protection, Object::Cgroup(place))
}

/// Beside the bits of protections: only guards that refuse the current task count.
pub(crate) const REFUSING: u64 = 1 << 30;

/// Whether a guard in force protects from all of these. (Without any: whether it is there.)
#[inline(always)]
fn objects(guard: &Guard, protections: u64) -> bool {
    guard.is_in_force() && guard.allowed & protections == 0
}

/// A guard below a cgroup, other than the writer's own, that protects from all of
/// `protections`, if there is one. Without any, it is any other guard in force.
#[inline(always)]
pub(crate) fn below(
    cgroup: CgroupKey,
    protections: u64,
    writer: Option<GuardId>,
) -> Option<GuardId> {
    last_below(cgroup)?;
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

/// A search among all guards.
pub(crate) struct Search {
    pub(crate) cgroup: CgroupKey,
    protections: u64,
    writer: GuardId,
    found: GuardId,
}

impl Search {
    /// For the guards below the cgroup that `packed` (see [`pack`]) and `kernfs_id` name.
    #[inline(always)]
    pub(crate) fn new(packed: u64, kernfs_id: u64, writer: GuardId) -> Self {
        Self {
            cgroup: CgroupKey::new(packed as u32, kernfs_id),
            protections: packed >> 32,
            writer,
            found: NOBODY,
        }
    }

    /// Whether this guard is one of them.
    #[inline(always)]
    pub(crate) fn is_met_by(&self, id: GuardId, guard: &Guard) -> bool {
        id != self.writer
            && objects(guard, self.protections)
            && !(self.protections & REFUSING != 0 && authority::is_superior(guard))
            && ANCESTORS
                .get_ptr(AncestorKey::new(self.cgroup, id))
                .is_some()
    }
}

/// The same as [`below`], as numbers. A global function: see [`covering`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_below(packed: u64, kernfs_id: u64, writer: u64) -> GuardId {
    let mut search = Search::new(packed, kernfs_id, writer);
    // Nearly always it is the last: then there is no need to look at all guards.
    if let Some(last) = last_below(search.cgroup)
        && let Some(guard) = guard(last)
        // SAFETY: a map value the verifier has seen checked.
        && search.is_met_by(last, unsafe { &*guard })
    {
        return last;
    }
    each::element(&GUARDS, look_below, &mut search);
    search.found
}

extern "C" fn look_below(
    _: *const c_void,
    id: *const GuardId,
    guard: *mut Guard,
    search: *mut Search,
) -> u64 {
    // SAFETY: a key and a value of `GUARDS`, and what `first_below` passes from its stack.
    let (id, guard, search) = unsafe { (*id, &*guard, &mut *search) };
    if !search.is_met_by(id, guard) {
        return GO_ON;
    }
    search.found = id;
    STOP
}

/// The hierarchy, and what else a global function is told in the same number.
#[inline(always)]
pub(crate) fn pack(cgroup: CgroupKey, more: u64) -> u64 {
    u64::from(cgroup.hierarchy_id) | more << 32
}
