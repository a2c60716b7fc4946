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
const TOO_DEEP: GuardId = GuardId::MAX;

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
    let id = word(&TARGETS, key(cgroup)?)?;
    // The mark of a guard that has ended must not hide another guard further up.
    Entry::of(id).map(|_| id)
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

/// The same as numbers. A global function: see [`lookup`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_covered(id: GuardId, task: u64) -> u64 {
    let task = task as Pointer;
    let is = |cgroup| is_in_target(cgroup, id);
    (v2_of(task).is_some_and(is) || v1_of(task).is_some_and(is)).into()
}

/// The relation of the current task to the guard. Authority matters to what is asked only.
#[inline(always)]
pub(crate) fn actor(id: GuardId, stage: Stage) -> Actor {
    Actor::numbered(actor_number(id, stage as u64))
}

/// The same as a number. A global function: see [`lookup`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn actor_number(id: GuardId, stage: u64) -> u64 {
    let actor = if membership::of_current() == Some(id) {
        Actor::Holder
    } else if stage == Stage::Asked as u64 && authority::yields(id) != 0 {
        Actor::Superior
    } else if !covers(id, kernel::current()) {
        Actor::Outsider
    } else if kernel::is_exiting(kernel::current()) {
        Actor::Dying
    } else {
        Actor::Own
    };
    actor as u64
}

/// Returns 1 if the holder of the guard has the task under ptrace, else 0. A global function:
/// see [`lookup`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_traced_by_holder(task: u64, id: GuardId) -> u64 {
    let task = task as Pointer;
    let traced = probe::<u32>(task, offset!(task_struct_ptrace)).is_some_and(|flags| flags != 0);
    // `parent` is the tracer while there is one.
    let tracer = probe::<TaskPointer>(task, offset!(task_struct_parent));
    (traced && tracer.is_some_and(|tracer| membership::of(tracer) == Some(id))).into()
}

/// A write to a cgroup, asked for or done. The cgroup of the writer does not matter.
#[derive(Clone, Copy)]
pub(crate) struct Write {
    pub(crate) protection: Protection,
    pub(crate) stage: Stage,
    /// Where the written cgroup lies, seen from the guards that are asked.
    pub(crate) place: Place,
}

impl Write {
    pub(crate) const fn asked(protection: Protection) -> Self {
        Self {
            protection,
            stage: Stage::Asked,
            place: Place::Inside,
        }
    }

    pub(crate) const fn done(protection: Protection) -> Self {
        Self {
            protection,
            stage: Stage::Done,
            place: Place::Inside,
        }
    }

    /// The same for the guards below the written cgroup.
    pub(crate) const fn above(self) -> Self {
        Self {
            place: Place::Above,
            ..self
        }
    }

    const ASKED: u64 = 1 << 8;
    const ABOVE: u64 = 1 << 10;
    /// In place of a write.
    const NONE: u64 = 1 << 9;

    #[inline(always)]
    pub(crate) fn packed(self) -> u64 {
        let asked = match self.stage {
            Stage::Asked => Self::ASKED,
            Stage::Done => 0,
        };
        let above = match self.place {
            Place::Above => Self::ABOVE,
            Place::Inside => 0,
        };
        self.protection as u64 | asked | above
    }

    #[inline(always)]
    fn unpacked(packed: u64) -> Option<Self> {
        let stage = match packed & Self::ASKED {
            0 => Stage::Done,
            _ => Stage::Asked,
        };
        let place = match packed & Self::ABOVE {
            0 => Place::Inside,
            _ => Place::Above,
        };
        (packed & Self::NONE == 0).then_some(Self {
            protection: Protection::numbered(packed as u32 & 0xff),
            stage,
            place,
        })
    }

    /// Whether the guard objects to it by the current task, which is a member of `writer`.
    #[inline(always)]
    fn is_objected(self, id: GuardId, guard: &GuardEntry, writer: Option<GuardId>) -> bool {
        let actor = if writer == Some(id) {
            Actor::Holder
        } else if matches!(self.stage, Stage::Asked) && authority::is_superior(guard) {
            Actor::Superior
        } else {
            Actor::Outsider
        };
        protects_from(
            guard,
            actor,
            Action {
                protection: self.protection,
                object: Object::Cgroup(self.place),
                stage: self.stage,
            },
        )
    }
}

/// Returns whether the guard objects to a write of the current task, a member of `writer`, to a
/// cgroup inside its target.
#[inline(always)]
pub(crate) fn protects_inside(id: GuardId, write: Write, writer: Option<GuardId>) -> bool {
    is_protected_inside(id, write.packed(), writer.unwrap_or(NOBODY)) != 0
}

/// The same as numbers. A global function: see [`lookup`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_protected_inside(id: GuardId, write: u64, writer: GuardId) -> u64 {
    let Some(entry) = Entry::of(id) else { return 0 };
    Write::unpacked(write)
        .is_some_and(|write| write.is_objected(id, entry.guard(), Some(writer)))
        .into()
}

/// A guard below a cgroup that objects to a write of the current task, a member of `writer`, to
/// that cgroup. Without a write: any guard below it but the writer's own.
#[inline(always)]
pub(crate) fn below(
    cgroup: CgroupKey,
    write: Option<Write>,
    writer: Option<GuardId>,
) -> Option<GuardId> {
    last_below(cgroup)?;
    let packed = pack(cgroup, write.map_or(Write::NONE, Write::packed));
    match first_below(packed, cgroup.kernfs_id, writer.unwrap_or(NOBODY)) {
        NOBODY => None,
        id => Some(id),
    }
}

/// The last guard that was begun below a cgroup, if any: it may have ended.
#[inline(always)]
pub(crate) fn last_below(cgroup: CgroupKey) -> Option<GuardId> {
    word(&ANCESTORS, AncestorKey::new(cgroup, AncestorKey::ANY))
}

/// A search among all guards.
pub(crate) struct Search {
    pub(crate) cgroup: CgroupKey,
    write: u64,
    writer: GuardId,
    found: GuardId,
}

impl Search {
    /// For the guards below the cgroup that `packed` (see [`pack`]) and `kernfs_id` name.
    #[inline(always)]
    pub(crate) fn new(packed: u64, kernfs_id: u64, writer: GuardId) -> Self {
        Self {
            cgroup: CgroupKey::new(packed as u32, kernfs_id),
            write: packed >> 32,
            writer,
            found: NOBODY,
        }
    }

    /// Whether this guard is one of them.
    #[inline(always)]
    pub(crate) fn is_met_by(&self, id: GuardId, guard: &GuardEntry) -> bool {
        let is_meant = match Write::unpacked(self.write) {
            Some(write) => write.is_objected(id, guard, Some(self.writer)),
            None => id != self.writer && guard.is_in_force(),
        };
        is_meant
            && ANCESTORS
                .get_ptr(AncestorKey::new(self.cgroup, id))
                .is_some()
    }
}

/// The same as [`below`], as numbers. A global function: see [`lookup`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first_below(packed: u64, kernfs_id: u64, writer: u64) -> GuardId {
    let mut search = Search::new(packed, kernfs_id, writer);
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
