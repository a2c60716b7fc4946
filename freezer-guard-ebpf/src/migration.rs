//! Moving tasks: into a target, out of it, and within.
//!
//! On v2 it is refused where the kernel asks for permission, under
//! `cgroup_mutex`, with source and destination at hand. v1 has no such place:
//! there the text that is written has to do, and `cgroup_attach_task` shows what
//! got past it. That is attached for v2 too.

use freezer_guard_ebpf::{Act, CgroupKey, GuardId, Protection, moves_one_thread};

use crate::{
    atomic::Word,
    automatic,
    covering::{self, Covering, below, minds, untyped},
    kernel::{self, Pointer, offset, probe},
    maps::{ATTACHING, Attaching},
    membership, pid,
    telling::{self, Deed, EBUSY},
};

/// The kernfs id of every hierarchy's root (`kernfs_create_root`).
const ROOT: u64 = 1;

/// Between two cgroups of one hierarchy, with the guards that mind.
struct Way {
    from: Option<GuardId>,
    to: Option<GuardId>,
    from_key: CgroupKey,
    to_key: CgroupKey,
    too_deep: bool,
}

impl Way {
    #[inline(always)]
    fn new(from: Pointer, to: Pointer) -> Option<Self> {
        let writer = membership::writer();
        let (from_key, to_key) = (covering::key(from)?, covering::key(to)?);
        let mut way = Self {
            from: None,
            to: None,
            from_key,
            to_key,
            too_deep: false,
        };
        match covering::of_cgroup(from) {
            Covering::Guard(id) if minds(id, Protection::Migrate, writer) => way.from = Some(id),
            Covering::TooDeep => way.too_deep = true,
            _ => {}
        }
        match covering::of_cgroup(to) {
            Covering::Guard(id) if minds(id, Protection::Migrate, writer) => way.to = Some(id),
            Covering::TooDeep => way.too_deep = true,
            _ => {}
        }
        Some(way)
    }
}

/// Calls `tell` with what the move does to each guard that minds.
#[inline(always)]
fn each(
    from: Option<GuardId>,
    to: Option<GuardId>,
    keys: [CgroupKey; 2],
    victim: u32,
    tell: impl Fn(GuardId, &Deed),
) {
    let deed = |act, cgroup| Deed {
        act,
        protection: Protection::Migrate,
        detail: 0,
        cgroup,
        victim,
    };
    match (from, to) {
        (Some(from), Some(to)) if from == to => tell(from, &deed(Act::Move, keys[1])),
        _ => {
            if let Some(from) = from {
                tell(from, &deed(Act::Leave, keys[0]));
            }
            if let Some(to) = to {
                tell(to, &deed(Act::Enter, keys[1]));
            }
        }
    }
}

/// The thread whose migration is to be refused at its next `inode_permission`.
/// There is one at a time: `cgroup_mutex` is held.
static REFUSED: Word = Word::new();

/// `cgroup_attach_permissions(src_cgrp, dst_cgrp, …)`, which asks for the
/// permission to write to the common ancestor and nothing else.
#[inline(always)]
pub(crate) fn before_permission(from: Pointer, to: Pointer) {
    let Some(way) = Way::new(untyped(from), untyped(to)) else {
        return;
    };
    if !way.too_deep && way.from.is_none() && way.to.is_none() {
        return;
    }
    REFUSED.set(kernel::current() as u64);
    let keys = [way.from_key, way.to_key];
    each(way.from, way.to, keys, 0, |id, deed| {
        telling::refused(id, deed);
    });
}

/// Whether there is one.
#[inline(always)]
pub(crate) fn is_any_refused() -> bool {
    REFUSED.get() != 0
}

/// The answer of `inode_permission` while there is one. Not inlined: see
/// `cgroup::check_write`.
#[inline(never)]
pub(crate) fn permission() -> i32 {
    match REFUSED.get() == kernel::current() as u64 {
        true => -EBUSY,
        false => 0,
    }
}

/// The return of `cgroup_attach_permissions`.
#[inline(always)]
pub(crate) fn after_permission() {
    if REFUSED.get() == kernel::current() as u64 {
        REFUSED.set(0);
    }
}

/// `cgroup_attach_task(dst_cgrp, leader, …)`: remembers where the task comes
/// from, since afterwards nobody knows.
#[inline(always)]
pub(crate) fn before_attach(to: Pointer, task: Pointer) {
    let Some(slot) = ATTACHING.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a map value that the verifier has seen checked; the caller holds
    // `cgroup_mutex`, so there is one writer at a time.
    unsafe { (*slot).task = 0 };
    if !membership::is_any_held() {
        return;
    }
    let Some(attaching) = attaching(untyped(to), task) else {
        return;
    };
    // SAFETY: as above.
    unsafe { *slot = attaching };
}

#[inline(always)]
fn attaching(to: Pointer, task: Pointer) -> Option<Attaching> {
    let root: Pointer = probe(to, offset!(cgroup_root))?;
    let hierarchy_id: u32 = probe(root, offset!(cgroup_root_hierarchy_id))?;
    let from = match hierarchy_id {
        0 => covering::v2_of(task)?,
        _ => covering::v1_of(task)?,
    };
    let way = Way::new(from, to)?;
    // Another hierarchy of v1's than the freezer's.
    if way.from_key.hierarchy_id != way.to_key.hierarchy_id || way.from_key == way.to_key {
        return None;
    }
    if way.from.is_none() && way.to.is_none() {
        return None;
    }
    Some(Attaching {
        task: kernel::current() as u64,
        from: way.from.unwrap_or(0),
        to: way.to.unwrap_or(0),
        from_key: way.from_key,
        to_key: way.to_key,
        victim: u64::from(kernel::tgid(task)),
    })
}

/// The return of `cgroup_attach_task`. What is counted now has been done, so
/// whoever finds the counters unchanged has seen all of it.
#[inline(always)]
pub(crate) fn after_attach(result: i32) {
    let Some(slot) = ATTACHING.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: as in `before_attach`.
    let attaching = unsafe { &*slot };
    if result != 0 || attaching.task != kernel::current() as u64 {
        return;
    }
    let guard = |id| (id != 0).then_some(id);
    let keys = [attaching.from_key, attaching.to_key];
    let victim = attaching.victim as u32;
    each(
        guard(attaching.from),
        guard(attaching.to),
        keys,
        victim,
        |id, deed| {
            telling::disturbed(id, deed);
        },
    );
}

/// The return of `css_set_move_task`: a new task has got its place. Where that is
/// not its parent's it was put there by `CLONE_INTO_CGROUP`, which passes no
/// `cgroup_attach_task`.
#[inline(always)]
pub(crate) fn after_fork(child: Pointer, from: Pointer, to: Pointer) {
    // Every other task comes from somewhere, and one that ends goes nowhere.
    if !from.is_null() || to.is_null() {
        return;
    }
    let Some(cgroup) = probe::<Pointer>(to, offset!(css_set_dfl_cgrp)) else {
        return;
    };
    if covering::v2_of(kernel::current()) == Some(cgroup) {
        return;
    }
    automatic::moved(child);
    if membership::is_any_held()
        && let Covering::Guard(id) = covering::of_cgroup(cgroup)
        && minds(id, Protection::Migrate, membership::writer())
        && let Some(cgroup) = covering::key(cgroup)
    {
        let deed = Deed {
            act: Act::Enter,
            protection: Protection::Migrate,
            detail: 0,
            cgroup,
            victim: kernel::tgid(child),
        };
        telling::disturbed(id, &deed);
    }
}

/// The answer to a write to `tasks` or `cgroup.procs` of a v1 cgroup, `written`,
/// that is in no target: is the task in one?
#[inline(always)]
pub(crate) fn check_v1(written: CgroupKey, file: u32, writer: Option<GuardId>) -> i32 {
    let minding = |id| minds(id, Protection::Migrate, writer);
    let root = CgroupKey::new(written.hierarchy_id, ROOT);
    let Some(any) = below(root, Protection::Migrate.bit(), writer) else {
        return 0;
    };
    let Some(task) = pid::being_written() else {
        // It may be any task: that must not let one of a target through.
        let deed = Deed {
            act: Act::Write,
            protection: Protection::Migrate,
            detail: file,
            cgroup: written,
            victim: 0,
        };
        telling::refused(any, &deed);
        return -EBUSY;
    };
    if task.is_null() {
        return 0;
    }
    let leader = match moves_one_thread(file) {
        true => Some(task),
        false => probe(task, offset!(task_struct_group_leader)),
    };
    match leader
        .and_then(covering::v1_of)
        .map(|from| (covering::of_cgroup(from), covering::key(from)))
    {
        Some((Covering::Guard(id), Some(from))) if minding(id) => {
            let deed = Deed {
                act: Act::Leave,
                protection: Protection::Migrate,
                detail: 0,
                cgroup: from,
                victim: kernel::tgid(task),
            };
            telling::refused(id, &deed);
            -EBUSY
        }
        Some((Covering::TooDeep, _)) => -EBUSY,
        _ => 0,
    }
}
