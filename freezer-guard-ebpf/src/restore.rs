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
    // An engine moves its checkpointer; a checkpointer moves what it restores, or that moves itself.
    if let Some(id) = membership::of(kernel::task(task)) {
        let number = kernel::number;
        put(id, number(task), number(from), number(to));
    }
}

/// The same for the task of a holder, as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put(id: GuardId, task: u64, from: u64, to: u64) -> u64 {
    let Some(entry) = Entry::of(id).filter(|entry| entry.guard().is_automatic()) else {
        return 0;
    };
    let (is_fork, to) = (from == 0, to as Pointer);
    let (flags, leader) = (entry.flags(), entry.guard().leader.0);
    if flags & GuardEntry::RESTORES != 0 {
        let is_in_target = |cgroup| lookup::is_in_target(cgroup, id);
        let cgroups = [lookup::v2_of_set(to), lookup::v1_of_set(to)];
        if is_fork && (cgroups[0].is_some_and(is_in_target) || cgroups[1].is_some_and(is_in_target))
        {
            membership::hold_no_more(kernel::task(task as Pointer), id);
        }
        return 0;
    }
    if !entry.guard().is_candidate() {
        return 0;
    }
    let is_leader = task == leader;
    if is_leader && !is_fork {
        // The engine may still write the freezer of that cgroup: not before the next fork.
        entry.set_flags(GuardEntry::MOVED);
        return 0;
    }
    if is_fork && flags & GuardEntry::MOVED == 0 || !candidate::executes_checkpointer() {
        return 0;
    }
    let v2 = lookup::v2_of_set(to);
    claim_fresh(id, v2, to, is_fork);
    claim_fresh(
        id,
        lookup::v1_of_set(to).filter(|v1| Some(*v1) != v2),
        to,
        is_fork,
    );
    0
}

/// Claims the cgroup if no task is in there but, at a fork, the checkpointer and its child.
#[inline(always)]
fn claim_fresh(id: GuardId, cgroup: Option<Pointer>, set: Pointer, is_fork: bool) {
    let Some(cgroup) = cgroup else { return };
    let count = |base, offset| probe::<u32>(base, offset);
    let (sets, tasks) = match is_fork {
        true => (1, 2),
        false => (0, 1),
    };
    if count(cgroup, offset!(cgroup_level)).is_some_and(|level| level > 0)
        && count(cgroup, offset!(cgroup_nr_populated_csets)) == Some(sets)
        && count(cgroup, offset!(cgroup_nr_populated_domain_children)) == Some(0)
        && count(set, offset!(css_set_nr_tasks)) == Some(tasks)
    {
        let flags = GuardEntry::RESTORES | GuardEntry::ENDS_WITH_LEADER;
        claim_for(id, kernel::number(cgroup), flags);
    }
}
