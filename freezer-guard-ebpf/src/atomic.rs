//! Words that many CPUs share.

use core::{
    cell::UnsafeCell,
    intrinsics::{AtomicOrdering, atomic_xadd, atomic_xchg},
    ptr,
};

/// Adds to a counter in a map.
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

/// Sets a word in a map and returns what it was: of several programs that set it, one
/// finds the old value (`BPF_XCHG`, Linux 5.12).
#[inline(always)]
pub(crate) fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: as for `add`.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(word, value) }
}

/// A global word, here and not in a map of its own: a program reads it without
/// a look-up. `AtomicU64` will not do: LLVM has no atomic stores for BPF.
pub(crate) struct Word(UnsafeCell<u64>);

// SAFETY: every access is one volatile load or store of an aligned word, which
// the CPU does in one piece.
unsafe impl Sync for Word {}

impl Word {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> u64 {
        // SAFETY: the cell is always there to be read.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn add(&self, amount: u64) {
        add(self.0.get(), amount);
    }

    #[inline(always)]
    pub(crate) fn set(&self, value: u64) {
        // SAFETY: as above, to be written; see `Sync`.
        unsafe { self.0.get().write_volatile(value) }
    }
}
