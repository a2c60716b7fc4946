//! Dumps without a freezer: the guard of a checkpointer begins with its first seize.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use freezer_guard_abi::{
    Act, AncestorKey, CgroupKey, GuardEntry, GuardId, MAX_DEPTH_BY_USER, Protection, Unguarded,
};

use crate::{
    audit::{self, Access},
    automatic::{mark_line, unguarded},
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
    if let Some(id) = membership::of_current() {
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
    // Its own children: it restores them, or tries out what the kernel can do.
    if membership::belongs_to(kernel::task(victim), id) || lookup::covers(id, victim) {
        return 0;
    }
    let cgroup = cgroup_of(victim);
    let Some(key) = cgroup.and_then(lookup::key) else {
        return 0;
    };
    if entry.flags() & GuardEntry::SEIZES == 0 && !entry.guard().is_candidate() {
        let mut access = Access::new(Act::Stray, Protection::Freeze, key);
        access.victim = kernel::tgid(victim);
        audit::disturbed(id, &access);
        return 0;
    }
    protect_seized(
        id,
        kernel::number(victim),
        key.hierarchy_id.into(),
        key.kernfs_id,
    )
}

/// The cgroup in which a task could be frozen: in v2, unless that is not in use.
#[inline(always)]
fn cgroup_of(task: Pointer) -> Option<Pointer> {
    let is_used = |cgroup: &Pointer| {
        probe::<u32>(*cgroup, offset!(cgroup_level)).is_some_and(|level| level > 0)
    };
    lookup::v2_of(task)
        .filter(is_used)
        .or_else(|| lookup::v1_of(task))
}

/// Whether the marks above the task's cgroup are too many for a user's guard.
#[inline(always)]
fn is_too_deep(entry: Entry, task: Pointer) -> bool {
    let level = cgroup_of(task).and_then(|cgroup| probe::<u32>(cgroup, offset!(cgroup_level)));
    entry.flags() & GuardEntry::BY_USER != 0 && level.is_none_or(|level| level > MAX_DEPTH_BY_USER)
}

/// The guard protects a task that its holder has seized. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn protect_seized(id: GuardId, task: u64, hierarchy: u64, kernfs_id: u64) -> u64 {
    let Some(entry) = Entry::of(id) else { return 0 };
    let key = CgroupKey::new(hierarchy as u32, kernfs_id);
    if word(&ANCESTORS, AncestorKey::new(key, id)).is_some() {
        return 0;
    }
    let is_other = |cgroup| matches!(lookup::of_cgroup(cgroup), Found::Guard(_) | Found::TooDeep);
    let task = task as Pointer;
    if lookup::v2_of(task).is_some_and(is_other) || lookup::v1_of(task).is_some_and(is_other) {
        unguarded(id, key, Unguarded::Busy);
        return 0;
    }
    if is_too_deep(entry, task) || lifetime::hold(id) == 0 {
        unguarded(id, key, Unguarded::Full);
        return 0;
    }
    entry.set_flags(GuardEntry::SEIZES);
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if !entry.is_checkpointing() && entry.set_checkpointing(now) == 0 {
        entry.set_begun(now, key);
        lifetime::was_candidate(entry.flags());
        audit::emit_begun(id, entry, key);
    }
    for cgroup in [lookup::v2_of(task), lookup::v1_of(task)] {
        if let Some(cgroup) = cgroup {
            mark_line(cgroup, id);
        }
    }
    0
}
