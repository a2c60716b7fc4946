//! Counting from many CPUs at once.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

/// Adds to a counter in a map.
///
/// The result of the addition is thrown away, which makes it the plain `xadd`
/// that every kernel has; BPF has no fetching one before 5.12.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the callers pass a pointer into a map value, which the verifier
    // has seen checked against null.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount);
    }
}

/// Reads a counter that others may be adding to.
#[inline(always)]
pub(crate) fn read(counter: *const u64) -> u64 {
    // SAFETY: as for `add`; the read is one load of an aligned word.
    unsafe { ptr::read_volatile(counter) }
}
