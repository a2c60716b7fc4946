//! Moving tasks: into a target, out of it, and within.
//!
//! On v2 it is refused where the kernel asks for permission, under
//! `cgroup_mutex`, with source and destination at hand. v1 has no such place: there the
//! text that is written has to do. `css_set_move_task` shows every move that is made, on
//! both.

use freezer_guard_abi::{
    Act, CgroupKey, GuardEntry, GuardId, LogLine, Place, Protection, Stage, TaskPointer,
    moves_one_thread,
};

use crate::{
    atomic::Word,
    audit::{self, Access, EBUSY},
    entry::Entry,
    kernel::{self, Pointer, offset, probe},
    lifetime, log,
    lookup::{self, Found, NOBODY, TOO_DEEP},
    membership, pid,
    writes::{counts_inside, refuses_below, refuses_inside},
};

/// The kernfs id of every hierarchy's root (`kernfs_create_root`).
const ROOT: u64 = 1;

/// Counts a move for each guard that protects its tasks from it, and tells about it: one that the
/// task leaves, and one that it enters. Returns them as [`refusing`] and [`counting`] do.
#[inline(always)]
fn count_move(from: Pointer, to: Pointer, victim: u32, stage: Stage) -> (GuardId, GuardId) {
    let writer = membership::writer();
    let objector = |cgroup: Pointer| match stage {
        Stage::Asked => refusing(cgroup as u64, writer),
        Stage::Done => counting(cgroup as u64, writer),
    };
    let (left, entered) = (objector(from), objector(to));
    if left == entered {
        tell(left, Act::Move, to, victim, stage);
    } else {
        tell(left, Act::Leave, from, victim, stage);
        tell(entered, Act::Enter, to, victim, stage);
    }
    (left, entered)
}

/// Tells the guard, if it is one, of a move.
#[inline(always)]
fn tell(id: GuardId, act: Act, cgroup: Pointer, victim: u32, stage: Stage) {
    if id != NOBODY && id != TOO_DEEP {
        let packed = u64::from(victim) << 32 | (stage as u64) << 16 | act as u64;
        tell_of(id, packed, cgroup as u64);
    }
}

/// The guard that refuses the current task, a member of `writer`, to move a task of the cgroup;
/// [`NOBODY`]; or [`TOO_DEEP`], if nobody can tell and it is refused. A global function: see
/// `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refusing(cgroup: u64, writer: GuardId) -> GuardId {
    match lookup::of_cgroup(cgroup as Pointer) {
        Found::Guard(id) if refuses_inside(id, Protection::Migrate, writer) => id,
        Found::TooDeep if lookup::too_deep_for_current() => TOO_DEEP,
        _ => NOBODY,
    }
}

/// The guard that counts a move of a task of the cgroup, or [`NOBODY`]. A global function: see
/// `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn counting(cgroup: u64, writer: GuardId) -> GuardId {
    match lookup::of_cgroup(cgroup as Pointer) {
        Found::Guard(id) if counts_inside(id, Protection::Migrate, writer) => id,
        _ => NOBODY,
    }
}

/// Tells the guard of a move. `packed`: an [`Act`], a [`Stage`] and the victim. A global function:
/// see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_of(id: GuardId, packed: u64, cgroup: u64) -> u64 {
    let Some(cgroup) = lookup::key(cgroup as Pointer) else {
        return 0;
    };
    let act = packed as u32 & 0xffff;
    let mut access = Access::numbered(act, Protection::Migrate as u32, cgroup);
    access.victim = (packed >> 32) as u32;
    match packed & 1 << 16 {
        ASKED => audit::refused(id, &access),
        _ => audit::disturbed(id, &access),
    }
    0
}

/// [`Stage::Asked`] as [`tell_of`] is told it.
const ASKED: u64 = (Stage::Asked as u64) << 16;

/// The thread whose migration is to be refused at its next `inode_permission`.
/// There is one at a time: `cgroup_mutex` is held.
static REFUSED: Word = Word::new();

/// `cgroup_attach_permissions(src_cgrp, dst_cgrp, …)`, which asks for the
/// permission to write to the common ancestor and nothing else.
#[inline(always)]
pub(crate) fn before_permission(from: Pointer, to: Pointer) {
    if is_refused(kernel::number(from), kernel::number(to)) != 0 {
        REFUSED.set(kernel::current() as u64);
    }
}

/// A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_refused(from: u64, to: u64) -> u64 {
    let (left, entered) = count_move(from as Pointer, to as Pointer, 0, Stage::Asked);
    (left != NOBODY || entered != NOBODY).into()
}

/// Forgets it. Nothing is refused while no guard is held; but a thread may have been on its way
/// when the programs were detached, and has never come to [`after_permission`].
#[inline(always)]
pub(crate) fn forget_refused() {
    REFUSED.set(0);
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

/// The return of `css_set_move_task(task, from, to, …)`. Each fork comes here (without
/// `from`), each end of a task (without `to`), and each thread that is moved, in any
/// hierarchy. `css_set_lock` is held: nothing is missed, and what is counted has been done.
#[inline(always)]
pub(crate) fn after_move(task: Pointer, from: Pointer, to: Pointer) {
    if to.is_null() {
        // `current` need not be the task: since Linux 7.2 the next one sees its end.
        membership::leave(task);
        return;
    }
    let from = match from.is_null() {
        true => {
            membership::inherit_late(kernel::task(task));
            lookup::set_of(kernel::current())
        }
        false => Some(from),
    };
    // Nearly every child shares its parent's set.
    if let Some(from) = from
        && from != to
    {
        let (v2, v1) = (lookup::v2_of_set, lookup::v1_of_set);
        between(task, v2(from), v2(to));
        between(task, v1(from), v1(to));
    }
}

/// In one hierarchy.
#[inline(always)]
fn between(task: Pointer, from: Option<Pointer>, to: Option<Pointer>) {
    if let (Some(from), Some(to)) = (from, to)
        && from != to
    {
        has_moved(kernel::number(task), from as u64, to as u64);
    }
}

/// A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn has_moved(task: u64, from: u64, to: u64) -> u64 {
    let (from, to) = (from as Pointer, to as Pointer);
    if lifetime::is_any_held() {
        let moved = task as Pointer;
        let told = count_move(from, to, kernel::tgid(moved), Stage::Done);
        count_move_beside(moved, to, told);
    }
    // Not before: a guard that has ended counts nothing.
    let_go(TaskPointer(task), from, to);
    0
}

/// The guard whose target the task is in, in the hierarchy where it has not been moved, counts the
/// move too, unless it is one of those that have been told.
#[inline(always)]
fn count_move_beside(task: Pointer, to: Pointer, (left, entered): (GuardId, GuardId)) {
    let writer = membership::writer();
    let counting = |cgroup: Option<Pointer>| match cgroup {
        Some(cgroup) => counting(cgroup as u64, writer),
        None => NOBODY,
    };
    for id in [counting(lookup::v2_of(task)), counting(lookup::v1_of(task))] {
        if id != left && id != entered {
            tell(id, Act::Move, to, kernel::tgid(task), Stage::Done);
        }
    }
}

/// A holder's task is moved to a cgroup. If a checkpointer restores it there, it holds the guard no
/// longer: otherwise the guard would last as long as it lives, and nobody could stop it.
///
/// An automatic guard lets each task go that is moved, but for the one that executes the
/// checkpointer. (One that comes into the target of a restore keeps the holder's rights.) One that
/// comes into the target of another guard stays a member: it may have cgroups below to go to. (A
/// guard of a user ends in time, and root can kill its target's tasks. The tasks that it restores go
/// on to count, so that they find no more room than other members.)
#[inline(always)]
fn let_go(task: TaskPointer, from: Pointer, to: Pointer) {
    let Some(id) = membership::held_by(task) else {
        return;
    };
    let Some(entry) = Entry::of(id) else { return };
    let (guard, flags) = (entry.guard(), entry.flags());
    if guard.leader == task {
        return;
    }
    let is_put = || lookup::is_in_target(to, id);
    if guard.is_automatic() && !(flags & GuardEntry::RESTORES != 0 && is_put()) {
        membership::leave(task.0 as Pointer);
    } else if flags & GuardEntry::BY_USER == 0 && is_put() && !lookup::is_in_target(from, id) {
        membership::hold_no_more(task, id);
    }
}

/// Whether a write to `tasks` or `cgroup.procs` of a v1 cgroup, `written`, that is in no
/// target is refused: the task may be in one.
#[inline(always)]
pub(crate) fn moves_out(written: CgroupKey, file: u32, writer: GuardId) -> bool {
    let root = CgroupKey::new(written.hierarchy_id, ROOT);
    // Any guard of this hierarchy: the task may be inside its target.
    let Some(any) = refuses_below(root, Protection::Migrate, Place::Inside, writer) else {
        return false;
    };
    let task = pid::being_written();
    if task == pid::UNKNOWN {
        // It may be any task: that must not let one of a target through.
        let pid = kernel::tgid(kernel::current()).into();
        log::write_of(LogLine::UnreadText, pid, written);
        let mut access = Access::new(Act::Write, Protection::Migrate, written);
        access.detail = file;
        audit::refused(any, &access);
        return true;
    }
    // `css_set_move_task` will notice a move out of a target.
    if task == pid::UNREADABLE || task == 0 {
        return false;
    }
    let task = task as Pointer;
    let leader = match moves_one_thread(file) {
        true => Some(task),
        false => probe(task, offset!(task_struct_group_leader)),
    };
    let Some(leader) = leader else { return false };
    let refusing = |cgroup: Option<Pointer>| {
        let id = cgroup.map_or(NOBODY, |cgroup| refusing(cgroup as u64, writer));
        if id == NOBODY {
            return false;
        }
        if let Some(from) = cgroup {
            tell(id, Act::Leave, from, kernel::tgid(task), Stage::Asked);
        }
        true
    };
    // A guard of the other hierarchy objects too: it is the same task.
    refusing(lookup::v1_of(leader)) || refusing(lookup::v2_of(leader))
}
