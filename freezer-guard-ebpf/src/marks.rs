//! The marks of guards in `TARGETS` and `ANCESTORS`: how they change hands.
//!
//! A mark names a guard. While that guard is in force, the mark goes only when the guard is being ended,
//! and names no other guard. A mark of a guard that has ended changes by one atomic operation: to a new
//! guard, or to [`NOBODY`]. The program that has put `NOBODY` there removes the entry, and every other
//! one waits for that. So no program, on any CPU, takes or removes a mark that another one has got.

use aya_ebpf::{bindings::BPF_NOEXIST, maps::HashMap};
use freezer_guard_abi::{AncestorKey, CgroupKey, GuardId, Unguarded};

use crate::{
    atomic,
    entry::Entry,
    lookup::NOBODY,
    maps::{ANCESTORS, TARGETS},
};

/// How often a program looks at a mark that others are changing.
const ATTEMPTS: usize = 8;

/// The result of one attempt to get a mark.
enum Attempt {
    Got,
    /// Another guard has it.
    Taken,
    /// Another program was faster.
    Again,
    Full,
}

/// Gets a mark that does not exist, or whose guard `is_free`.
#[inline(always)]
fn get<K>(
    marks: &HashMap<K, GuardId>,
    key: &K,
    id: GuardId,
    is_free: impl Fn(GuardId) -> bool,
) -> Attempt {
    const EEXIST: i32 = -17;
    let Some(mark) = marks.get_ptr_mut(key) else {
        return match marks.insert(key, id, u64::from(BPF_NOEXIST)) {
            Ok(()) => Attempt::Got,
            Err(EEXIST) => Attempt::Again,
            Err(_) => Attempt::Full,
        };
    };
    // SAFETY: an aligned word of a map value.
    let named = unsafe { atomic::read(mark) };
    if named == NOBODY {
        return Attempt::Again;
    }
    if !is_free(named) {
        return Attempt::Taken;
    }
    // SAFETY: as above.
    match unsafe { atomic::replace(mark, named, id) } {
        true => Attempt::Got,
        false => Attempt::Again,
    }
}

/// Makes the cgroup a target of the guard.
#[inline(always)]
pub(crate) fn take_target(key: CgroupKey, id: GuardId) -> Result<(), Unguarded> {
    for _ in 0..ATTEMPTS {
        match get(&TARGETS, &key, id, |named| Entry::of(named).is_none()) {
            Attempt::Got => return Ok(()),
            Attempt::Taken => return Err(Unguarded::Busy),
            Attempt::Full => return Err(Unguarded::Full),
            Attempt::Again => {}
        }
    }
    Err(Unguarded::Busy)
}

/// Marks the cgroup as one above a target of the guard. Returns `false` if another program was faster:
/// try again.
#[inline(always)]
pub(crate) fn mark_above(key: CgroupKey, id: GuardId) -> bool {
    let own = AncestorKey::new(key, id);
    let last = AncestorKey::new(key, AncestorKey::ANY);
    let _ = ANCESTORS.insert(own, id, u64::from(BPF_NOEXIST));
    // User space marks the cgroups for which there is no room.
    !matches!(get(&ANCESTORS, &last, id, |_| true), Attempt::Again)
}

/// Removes the mark of a guard that has ended or is being ended, if it names that still.
#[inline(always)]
pub(crate) fn remove<K>(marks: &HashMap<K, GuardId>, key: &K, ended: GuardId) {
    if let Some(mark) = marks.get_ptr_mut(key)
        // SAFETY: an aligned word of a map value.
        && unsafe { atomic::replace(mark, ended, NOBODY) }
    {
        let _ = marks.remove(key);
    }
}
