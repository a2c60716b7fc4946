//! Dumps without a freezer: the guard of a checkpointer begins with its first seize.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use freezer_guard_abi::{
    Act, AncestorKey, GuardEntry, GuardId, MAX_DEPTH_BY_USER, Protection, Unguarded,
};

use crate::{
    audit::{self, Access},
    automatic::mark_line,
    candidate::{self, unguarded},
    entry::Entry,
    kernel::{self, Pointer, offset, probe},
    lifetime,
    lookup::{self, Found},
    maps::{ANCESTORS, word},
    membership,
};

/// The current task has attached to this one by ptrace.
#[inline(always)]
pub(crate) fn seized(task: Pointer) {
    // A guard is that of its whole holder; a candidate has programs that are none of its business.
    let own = membership::of_current()
        .filter(|id| Entry::of(*id).is_some_and(|entry| !entry.guard().is_candidate()));
    if let Some(id) = own.or_else(candidate::of_current) {
        seize(id, kernel::number(task));
    }
}

/// A checkpointer that uses no freezer has a guard from its first seize on. If it has frozen a
/// cgroup before, it has to find all its tasks there: another one was not frozen, and may
/// have changed during the dump. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn seize(id: GuardId, task: u64) -> u64 {
    let Some(entry) = Entry::of(id).filter(|entry| entry.guard().is_automatic()) else {
        return 0;
    };
    let victim = task as Pointer;
    // It restores that one, or tries out what the kernel can do. (The id of a candidate is the time
    // of its `execve`, that of a worker the time of its start.)
    let start = probe::<u64>(victim, offset!(task_struct_start_boottime));
    if start.is_none_or(|start| start > id) || lookup::covers(id, victim) {
        return 0;
    }
    const WITHOUT_FREEZER: u64 = GuardEntry::SEIZES | GuardEntry::RESTORES;
    if entry.flags() & WITHOUT_FREEZER != 0 || entry.guard().is_candidate() {
        return protect_seized(id, kernel::number(victim));
    }
    let cgroup = cgroup_of(victim);
    if let Some(key) = cgroup.and_then(lookup::key)
        && GuardEntry::protects(entry.guard().allowed, Protection::Freeze)
    {
        let mut access = Access::new(Act::Stray, Protection::Freeze, key);
        access.victim = kernel::tgid(victim);
        audit::disturbed(id, &access);
    }
    0
}

/// `ptrace_disable(child)`: the current task is about to detach from this one.
#[inline(always)]
pub(crate) fn detaches(task: Pointer) {
    if let Some(id) = membership::of_current() {
        let_go(id, kernel::number(task));
    }
}

/// The dump or restore of a checkpointer is over when it traces no task any more. Before it detaches
/// from the first one, it has read their memory and written the freezer for the last time
/// (`pstree_switch_state` of `criu/seize.c`). Its engine may thaw at that moment. A violated guard stays,
/// since CRIU writes the image of a pre-dump later. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn let_go(id: GuardId, task: u64) -> u64 {
    let Some(entry) = Entry::of(id) else { return 0 };
    let (guard, flags) = (entry.guard(), entry.flags());
    // Its scripts may trace anything.
    if guard.is_candidate() || guard.leader != kernel::task(kernel::current()) {
        return 0;
    }
    let task = task as Pointer;
    let is_too_early = match flags & GuardEntry::RESTORES {
        0 => flags & GuardEntry::SPOILED != 0,
        // It seizes each child once before that is restored (`arch_shstk_unlock`).
        _ => candidate::executes_one(task),
    };
    let list = kernel::current().wrapping_byte_add(offset!(task_struct_ptraced));
    let own = task.wrapping_byte_add(offset!(task_struct_ptrace_entry));
    // `struct list_head`: the next one and the one before.
    let is = |place| probe::<Pointer>(list, place) == Some(own);
    if is_too_early || !is(0) || !is(size_of::<Pointer>()) {
        return 0;
    }
    if flags & GuardEntry::LEFT_FROZEN == 0 {
        // It has left the cgroup as it wants it.
        entry.clear_flags(GuardEntry::FROZEN_BY_US);
    }
    if lifetime::end(id, false) {
        // Not before: see `membership`.
        lifetime::STALE.add(1);
    }
    0
}

/// The cgroup in which a task could be frozen: in v1, unless it is in the root there.
#[inline(always)]
fn cgroup_of(task: Pointer) -> Option<Pointer> {
    lookup::v1_of(task)
        .filter(|cgroup| level(*cgroup) > 0)
        .or_else(|| lookup::v2_of(task))
}

#[inline(always)]
fn level(cgroup: Pointer) -> u32 {
    probe(cgroup, offset!(cgroup_level)).unwrap_or(u32::MAX)
}

/// The guard protects a task that its holder has seized. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn protect_seized(id: GuardId, task: u64) -> u64 {
    let task = task as Pointer;
    let (Some(entry), Some(key)) = (Entry::of(id), cgroup_of(task).and_then(lookup::key)) else {
        return 0;
    };
    let cgroups = [lookup::v2_of(task), lookup::v1_of(task)];
    let any = |is: fn(GuardId, Pointer) -> bool| {
        cgroups[0].is_some_and(|cgroup| is(id, cgroup))
            || cgroups[1].is_some_and(|cgroup| is(id, cgroup))
    };
    if !any(is_unmarked) {
        return 0;
    }
    if any(is_guarded) {
        unguarded(id, key, Unguarded::Busy);
        return 0;
    }
    // The marks of a user leave room for those of root.
    let flags = entry.flags();
    let by_user = flags & GuardEntry::BY_USER != 0;
    let is_too_much = by_user && (flags & GuardEntry::SEIZES != 0 || any(is_too_deep));
    if is_too_much || lifetime::hold(id) == 0 {
        unguarded(id, key, Unguarded::Full);
        return 0;
    }
    entry.set_flags(GuardEntry::SEIZES);
    for cgroup in cgroups {
        if let Some(cgroup) = cgroup {
            mark_line(cgroup, id);
        }
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if !entry.is_checkpointing() && entry.set_checkpointing(now) == 0 {
        entry.set_begun(now, key);
        lifetime::was_candidate(flags);
        audit::emit_begun(id, entry, key);
    }
    0
}

#[inline(always)]
fn is_unmarked(id: GuardId, cgroup: Pointer) -> bool {
    lookup::key(cgroup).is_some_and(|key| word(&ANCESTORS, AncestorKey::new(key, id)).is_none())
}

#[inline(always)]
fn is_guarded(_: GuardId, cgroup: Pointer) -> bool {
    matches!(lookup::of_cgroup(cgroup), Found::Guard(_) | Found::TooDeep)
}

#[inline(always)]
fn is_too_deep(_: GuardId, cgroup: Pointer) -> bool {
    level(cgroup) > MAX_DEPTH_BY_USER
}
