//! Restores: the guard of a checkpointer begins when it puts a task into a cgroup of its own, or forks
//! one after its engine has put the checkpointer there.

use freezer_guard_abi::{GuardEntry, GuardId};

use crate::{
    automatic::claim_for,
    candidate,
    entry::Entry,
    kernel::{self, Pointer, offset, probe},
    lifetime, lookup, membership,
};

/// `css_set_move_task(task, from, to, …)` is about to begin, with `css_set_lock` held. A fork has no
/// `from`.
#[inline(always)]
pub(crate) fn moves(task: Pointer, from: Pointer, to: Pointer) {
    if to.is_null() || lifetime::all_candidates() == 0 && !lifetime::is_any_held() {
        return;
    }
    let from = kernel::number(from);
    // Below the level `enforce` a child becomes a member on return.
    let parent = || membership::of_current().filter(|_| from == 0);
    if let Some(id) = membership::of(kernel::task(task)).or_else(parent) {
        put(id, kernel::number(task), from, kernel::number(to));
    }
}

/// The same for the task of a holder, as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put(id: GuardId, task: u64, from: u64, to: u64) -> u64 {
    let Some(entry) = Entry::of(id).filter(|entry| entry.guard().is_automatic()) else {
        return 0;
    };
    let (task, is_fork) = (task as Pointer, from == 0);
    let leader = entry.guard().leader.0 as Pointer;
    let flags = entry.flags();
    if entry.guard().is_candidate() {
        if task == leader && !is_fork {
            // Its engine may still write the freezer of that cgroup: not before the next fork.
            entry.set_flags(GuardEntry::MOVED);
            return 0;
        }
        let begins = match is_fork {
            true => flags & GuardEntry::MOVED != 0,
            false => is_restored_by(task, leader),
        };
        if !begins || !candidate::executes_checkpointer() {
            return 0;
        }
    } else if flags & GuardEntry::RESTORES == 0 || membership::of_current() != Some(id) {
        return 0;
    }
    if !is_fork || flags & GuardEntry::RESTORES == 0 {
        claim_fresh(id, v2_of(to), to, from);
        claim_fresh(id, v1_of(to), to, from);
    }
    if is_fork && (is_target(id, v2_of(to)) | is_target(id, v1_of(to))) != 0 {
        membership::hold_no_more(kernel::task(task), id);
    }
    0
}

/// Whether the task is the root of the tree that the checkpointer restores: its child, or its sibling
/// (`rst_sibling` of `criu swrk`). A worker of `criu service` restores others, without a guard.
#[inline(always)]
fn is_restored_by(task: Pointer, leader: Pointer) -> bool {
    let parent = |task| probe::<Pointer>(task, offset!(task_struct_real_parent));
    parent(task) == Some(leader) || parent(task) == parent(leader)
}

/// The cgroup of a set (`struct css_set`) in v2, or 0.
#[inline(always)]
fn v2_of(set: u64) -> u64 {
    lookup::v2_of_set(set as Pointer).unwrap_or(core::ptr::null()) as u64
}

/// The one in the hierarchy of the v1 freezer, or 0.
#[inline(always)]
fn v1_of(set: u64) -> u64 {
    lookup::v1_of_set(set as Pointer).unwrap_or(core::ptr::null()) as u64
}

/// Whether the guard covers the cgroup. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_target(id: GuardId, cgroup: u64) -> u64 {
    lookup::is_in_target(cgroup as Pointer, id).into()
}

/// Claims the cgroup if no task is in there but, at a fork, the checkpointer and its child. `set`: that
/// of the task that comes. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_fresh(id: GuardId, cgroup: u64, set: u64, from: u64) -> u64 {
    let count = |base: u64, offset| probe::<u32>(base as Pointer, offset);
    let (sets, tasks) = match from {
        0 => (1, 2),
        _ => (0, 1),
    };
    if count(cgroup, offset!(cgroup_level)).is_some_and(|level| level > 0)
        && count(cgroup, offset!(cgroup_nr_populated_csets)) == Some(sets)
        && count(cgroup, offset!(cgroup_nr_populated_domain_children)) == Some(0)
        && count(set, offset!(css_set_nr_tasks)) == Some(tasks)
    {
        claim_for(
            id,
            cgroup,
            GuardEntry::RESTORES | GuardEntry::ENDS_WITH_LEADER,
        );
    }
    0
}
