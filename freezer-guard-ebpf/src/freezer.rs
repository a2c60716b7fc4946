//! What becomes of the freezer: tripwires where the kernel changes it, under a
//! mutex of its own, whoever asked for it and whenever it was checked.
//!
//! The programs on entry see whether anything changes; those on return count.
//! What is counted has been done.

use core::ffi::c_void;

use freezer_guard_abi::{Act, CgroupKey, GuardEntry, GuardId, Protection};

use crate::{
    atomic::Word,
    audit::{self, Access},
    each::{self, GO_ON},
    entry::Entry,
    kernel::{self, Pointer, offset, probe},
    lookup::{self, Found},
    maps::{ENDED, GUARDS, TARGETS, word},
    marks, membership,
    writes::{counts_above, counts_inside, last_below, pack},
};

/// The threads that are changing a cgroup. At most one each: `freezer_mutex`
/// and `cgroup_mutex` are held.
static V1: Word = Word::new();
static V2: Word = Word::new();

/// `CGROUP_FREEZING_SELF` of `kernel/cgroup/legacy_freezer.c`: the state that
/// was written, and not one that comes from above.
pub(crate) const FREEZING_SELF: u32 = 1 << 1;

/// `freezer_apply_state(freezer, freeze, state)`
#[inline(always)]
pub(crate) fn before_v1(freezer: Pointer, freeze: bool, state: u32) {
    if state & FREEZING_SELF == 0 {
        return;
    }
    V1.set(changing(is_frozen_v1(freezer) != freeze));
}

/// Whether the freezer of a v1 cgroup is FROZEN by itself, or on its way there.
#[inline(always)]
pub(crate) fn is_frozen_v1(freezer: Pointer) -> bool {
    probe::<u32>(freezer, offset!(freezer_state)).is_some_and(|state| state & FREEZING_SELF != 0)
}

/// The return of `freezer_apply_state`.
#[inline(always)]
pub(crate) fn after_v1(freezer: Pointer, freeze: bool, state: u32) {
    if state & FREEZING_SELF == 0 || V1.get() != kernel::current() as u64 {
        return;
    }
    let cgroup = offset!(freezer_css) + offset!(cgroup_subsys_state_cgroup);
    if let Some(cgroup) = probe(freezer, cgroup) {
        changed(cgroup, freeze);
    }
}

/// `cgroup_freeze(cgrp, freeze)`
#[inline(always)]
pub(crate) fn before_v2(cgroup: Pointer, freeze: bool) {
    V2.set(changing(is_frozen_v2(cgroup) != freeze));
}

/// Whether a v2 cgroup's own freezer is on.
#[inline(always)]
pub(crate) fn is_frozen_v2(cgroup: Pointer) -> bool {
    let field = offset!(cgroup_freezer) + offset!(cgroup_freezer_state_freeze);
    probe::<u8>(cgroup, field).is_some_and(|freeze| freeze != 0)
}

/// The return of `cgroup_freeze`.
#[inline(always)]
pub(crate) fn after_v2(cgroup: Pointer, freeze: bool) {
    if V2.get() == kernel::current() as u64 {
        changed(cgroup, freeze);
    }
}

#[inline(always)]
fn changing(changes: bool) -> u64 {
    if changes { kernel::current() as u64 } else { 0 }
}

/// The cgroup's own freezer has changed: tells the guard on it or above it, and
/// those below it.
#[inline(always)]
fn changed(cgroup: Pointer, freeze: bool) {
    emit_all(kernel::number(cgroup), freeze.into());
}

/// Packed beside the hierarchy: it was frozen, and not thawed.
const FREEZES: u64 = 1 << 31;

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn emit_all(cgroup: u64, freeze: u64) -> u64 {
    let cgroup = cgroup as Pointer;
    let writer = membership::writer();
    let Some(key) = lookup::key(cgroup) else {
        return 0;
    };
    let packed = pack(key, if freeze != 0 { FREEZES } else { 0 });
    if let Found::Guard(id) = lookup::of_cgroup(cgroup) {
        if freeze != 0 {
            froze(id, key, id == writer);
        }
        if counts_inside(id, Protection::Freeze, writer) {
            disturb(id, packed, key.kernfs_id);
        }
    }
    if last_below(key).is_some() {
        let mut audience = Audience {
            cgroup: key,
            packed,
            writer,
        };
        each::element(&GUARDS, emit_below, &mut audience);
    }
    0
}

/// Somebody has frozen the target of an automatic guard. If that was the checkpointer, and it is
/// killed before it thaws, the target is to be thawed.
#[inline(always)]
fn froze(id: GuardId, cgroup: CgroupKey, is_holder: bool) {
    let Some(entry) = Entry::of(id).filter(|entry| entry.guard().is_automatic()) else {
        return;
    };
    if word(&TARGETS, cgroup) != Some(id) {
        return;
    }
    match is_holder {
        true => _ = entry.set_flags(GuardEntry::FROZEN_BY_US),
        false => entry.clear_flags(GuardEntry::FROZEN_BY_US | GuardEntry::LEFT_FROZEN),
    }
}

/// Somebody is about to write the freezer of a cgroup. If a guard has ended and left it frozen, the
/// cgroup is that one's from here on: nobody thaws it for the guard. Returns whether that is so.
#[inline(always)]
pub(crate) fn takes_over(cgroup: Pointer) -> bool {
    let was_left = was_left(kernel::number(cgroup)) != 0;
    if was_left
        && let Some(key) = lookup::key(cgroup)
        && let Some(id) = word(&TARGETS, key)
        // A checkpointer may have taken it just now: its mark stays.
        && Entry::of(id).is_none()
    {
        marks::remove(&TARGETS, &key, id);
    }
    was_left
}

/// Returns 1 if a guard has ended and left the cgroup frozen, else 0. A global function: see
/// `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn was_left(cgroup: u64) -> u64 {
    let Some(key) = lookup::key(cgroup as Pointer) else {
        return 0;
    };
    let Some(id) = word(&TARGETS, key) else {
        return 0;
    };
    // A record without room in `ENDED` is in `GUARDS`.
    let flags = match ENDED.get_ptr(id) {
        // SAFETY: a map value that the verifier has seen checked.
        Some(ended) => unsafe { (*ended).flags },
        None => match Entry::of_any(id) {
            Some(entry) if entry.has_ended() => entry.flags(),
            _ => 0,
        },
    };
    (flags & GuardEntry::FROZEN_BY_US != 0).into()
}

/// Which guards are told of what.
struct Audience {
    cgroup: CgroupKey,
    packed: u64,
    writer: GuardId,
}

/// Tells a guard, if it is one of them. (If they are more than fit into `VIOLATORS` and the
/// readers' rings, their counters still count it, and the readers know that they have
/// missed something.)
extern "C" fn emit_below(
    _: *const c_void,
    id: *const GuardId,
    guard: *mut GuardEntry,
    audience: *mut Audience,
) -> u64 {
    // SAFETY: a key and a value of `GUARDS`, and what `emit_all` passes from its stack.
    let (id, guard, audience) = unsafe { (*id, &*guard, &*audience) };
    let write = (audience.cgroup, Protection::Freeze);
    if counts_above(id, guard, write, audience.writer) {
        disturb(id, audience.packed, audience.cgroup.kernfs_id);
    }
    GO_ON
}

/// Tells the guard that a cgroup was frozen, or thawed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn disturb(id: u64, packed: u64, kernfs_id: u64) -> u64 {
    let freeze = packed >> 32 & FREEZES != 0;
    let access = Access::new(
        if freeze { Act::Freeze } else { Act::Thaw },
        Protection::Freeze,
        CgroupKey::new(packed as u32, kernfs_id),
    );
    audit::disturbed(id, &access);
    0
}
