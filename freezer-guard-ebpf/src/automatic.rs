//! Guards that nobody asked for: the freezer that a candidate writes is guarded from that very
//! write on.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use freezer_guard_abi::{GuardEntry, GuardId, MAX_DEPTH_BY_USER, Unguarded};

use crate::{
    audit,
    candidate::{self, unguarded},
    each::{self, GO_ON, STOP},
    entry::Entry,
    freezer::{self, FREEZING_SELF},
    kernel::{self, Pointer, offset, probe},
    lifetime,
    lookup::{self, Found},
    maps::TURNS,
    marks, membership,
    writes::any_below,
};

/// `freezer_apply_state(freezer, freeze, state)` is about to begin.
#[inline(always)]
pub(crate) fn writes_v1(freezer: Pointer, freeze: bool, state: u32) {
    let cgroup = offset!(freezer_css) + offset!(cgroup_subsys_state_cgroup);
    let is_frozen = freezer::is_frozen_v1(freezer);
    if state & FREEZING_SELF != 0
        && (freeze || is_frozen)
        && let Some(cgroup) = probe(freezer, cgroup)
    {
        claim(cgroup, is_frozen);
    }
}

/// `cgroup_freeze(cgrp, freeze)` is about to begin.
#[inline(always)]
pub(crate) fn writes_v2(cgroup: Pointer, freeze: bool) {
    let is_frozen = freezer::is_frozen_v2(cgroup);
    if freeze || is_frozen {
        claim(cgroup, is_frozen);
    }
}

/// `freezer_read(seq, v)`: a read of `freezer.state`.
#[inline(always)]
pub(crate) fn reads_v1(seq: Pointer) {
    if let Some((id, cgroup)) = read_by_candidate(seq)
        && let Some(state) = lookup::state_of_freezer(cgroup, offset!(cgroup_subsys))
        && freezer::is_frozen_v1(state.wrapping_byte_sub(offset!(freezer_css)))
    {
        claim_found(id, cgroup);
    }
}

/// `cgroup_freeze_show(seq, v)`: a read of `cgroup.freeze`.
#[inline(always)]
pub(crate) fn reads_v2(seq: Pointer) {
    if let Some((id, cgroup)) = read_by_candidate(seq)
        && freezer::is_frozen_v2(cgroup)
    {
        claim_found(id, cgroup);
    }
}

/// A candidate takes a cgroup that is frozen.
#[inline(always)]
fn claim_found(id: GuardId, cgroup: Pointer) {
    let was_left = freezer::was_left(kernel::number(cgroup)) != 0;
    claim_for(id, kernel::number(cgroup), pack(true, was_left));
}

/// The cgroup whose freezer a candidate is about to read: if an engine has paused it, the
/// checkpointer writes its freezer only after it has seized the tasks. A checkpointer that guards
/// something may read any freezer.
#[inline(always)]
fn read_by_candidate(seq: Pointer) -> Option<(GuardId, Pointer)> {
    let id = candidate::of_current()?;
    Entry::of(id).filter(|entry| entry.guard().is_candidate())?;
    let file: Pointer = probe(seq, offset!(seq_file_private))?;
    let node: Pointer = probe(file, offset!(kernfs_open_file_kn))?;
    let directory: Pointer = probe(node, offset!(kernfs_node_parent))?;
    Some((id, probe(directory, offset!(kernfs_node_priv))?))
}

/// The cgroup is frozen, or is about to be, and its freezer is about to be written, under a
/// mutex of the kernel's. If a checkpointer does that, it guards the cgroup from here on.
#[inline(always)]
fn claim(cgroup: Pointer, is_frozen: bool) {
    let was_left = freezer::takes_over(cgroup);
    if let Some(id) = candidate::of_current() {
        claim_for(id, kernel::number(cgroup), pack(is_frozen, was_left));
    }
}

/// The flag for a cgroup that is frozen: by its engine, or by a checkpointer that has gone.
#[inline(always)]
fn pack(is_frozen: bool, was_left: bool) -> u64 {
    match (is_frozen, was_left) {
        (false, _) => 0,
        (true, false) => GuardEntry::CLAIMED_FROZEN,
        (true, true) => GuardEntry::FROZEN_BY_US | GuardEntry::LEFT_FROZEN,
    }
}

/// The guard of a checkpointer takes the cgroup, and gets these flags. A global function: see
/// `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_for(id: GuardId, cgroup: u64, flags: u64) -> u64 {
    take(id, cgroup as Pointer, flags);
    0
}

#[inline(always)]
fn take(id: GuardId, cgroup: Pointer, flags: u64) {
    let Some(entry) = Entry::of(id) else { return };
    let Some(key) = lookup::key(cgroup) else {
        return;
    };
    match lookup::of_cgroup(cgroup) {
        Found::Nobody => {}
        Found::Guard(own) if own == id => return,
        Found::Guard(_) | Found::TooDeep => return unguarded(id, key, Unguarded::Busy),
    }
    if any_below(key, id).is_some() {
        return unguarded(id, key, Unguarded::Busy);
    }
    // The marks of a user leave room for those of root.
    if entry.flags() & GuardEntry::BY_USER != 0
        && (entry.is_checkpointing()
            || probe::<u32>(cgroup, offset!(cgroup_level))
                .is_none_or(|level| level > MAX_DEPTH_BY_USER))
    {
        return unguarded(id, key, Unguarded::Full);
    }
    // What is done to it from here on counts; a moment later, as a violation.
    if lifetime::hold(id) == 0 {
        return unguarded(id, key, Unguarded::Full);
    }
    if let Err(reason) = marks::take_target(key, id) {
        return unguarded(id, key, reason);
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if !entry.is_checkpointing() && entry.set_checkpointing(now) == 0 {
        entry.set_begun(now, key);
        lifetime::was_candidate(entry.flags());
    }
    mark_ancestors(cgroup, id);
    entry.set_flags(flags);
    if is_inside(cgroup) {
        entry.set_flags(GuardEntry::ENDS_WITH_LEADER);
    }
    audit::emit_begun(id, entry, key);
}

/// Whether the current task is in the cgroup, or below it, that was claimed just now.
#[inline(always)]
fn is_inside(cgroup: Pointer) -> bool {
    let current = kernel::current();
    let own = match probe::<Pointer>(cgroup, offset!(cgroup_root))
        .and_then(|root| probe::<u32>(root, offset!(cgroup_root_hierarchy_id)))
    {
        Some(0) => lookup::v2_of(current),
        _ => lookup::v1_of(current),
    };
    let own = own.map(lookup::of_cgroup);
    matches!(own, Some(Found::Guard(id)) if Some(id) == membership::of_current())
}

/// Marks each ancestor. What does not fit is marked by `arm`.
#[inline(always)]
fn mark_ancestors(cgroup: Pointer, id: GuardId) {
    if let Some(parent) = lookup::parent(cgroup) {
        mark_line(parent, id);
    }
}

/// Marks the cgroup and each ancestor.
#[inline(always)]
pub(crate) fn mark_line(cgroup: Pointer, id: GuardId) {
    let mut marking = Marking {
        cgroup: cgroup as u64,
        id,
    };
    each::element(&TURNS, mark_and_climb, &mut marking);
}

/// The way up from a cgroup that this guard has claimed.
struct Marking {
    cgroup: u64,
    id: GuardId,
}

extern "C" fn mark_and_climb(
    _: *const c_void,
    _: *const u32,
    _: *mut u8,
    marking: *mut Marking,
) -> u64 {
    // SAFETY: `mark_line` passes it, from its own stack.
    let marking = unsafe { &mut *marking };
    let cgroup = marking.cgroup as Pointer;
    if let Some(key) = lookup::key(cgroup)
        && !marks::mark_above(key, marking.id)
    {
        return GO_ON;
    }
    match lookup::parent(cgroup) {
        Some(parent) => {
            marking.cgroup = parent as u64;
            GO_ON
        }
        None => STOP,
    }
}
