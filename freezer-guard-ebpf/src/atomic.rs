//! Words that many CPUs share.

use core::{
    cell::UnsafeCell,
    intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg},
    ptr,
};

/// Adds to a counter. On arm64 that orders nothing (`STADD`): see [`fence`].
///
/// # Safety
/// `counter` points at an aligned word of a map value, which the verifier has seen checked
/// against null; and so for the others.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount);
    }
}

/// Reads a word that others may be writing.
///
/// # Safety
/// See [`add`].
#[inline(always)]
pub(crate) unsafe fn read(word: *const u64) -> u64 {
    // SAFETY: the caller's; the read is one load.
    unsafe { ptr::read_volatile(word) }
}

/// Sets bits of a word and returns what it was (`BPF_OR`, Linux 5.12).
///
/// # Safety
/// See [`add`].
#[inline(always)]
pub(crate) unsafe fn set_bits(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bits) }
}

/// Clears bits of a word (`BPF_AND`, Linux 5.12).
///
/// # Safety
/// See [`add`].
#[inline(always)]
pub(crate) unsafe fn clear_bits(word: *mut u64, bits: u64) {
    // SAFETY: the caller's.
    unsafe {
        atomic_and::<u64, u64, { AtomicOrdering::Relaxed }>(word, !bits);
    }
}

/// Sets a word and returns what it was: of several programs that set it, one finds the old
/// value (`BPF_XCHG`, Linux 5.12).
///
/// # Safety
/// See [`add`].
#[inline(always)]
pub(crate) unsafe fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(word, value) }
}

/// Sets a word if it has this value, and returns whether it had: of several programs that do it, one
/// succeeds (`BPF_CMPXCHG`, Linux 5.12).
///
/// # Safety
/// See [`add`].
#[inline(always)]
pub(crate) unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
    // SAFETY: the caller's.
    let (found, _) = unsafe { atomic_cxchg::<u64, { ORDER }, { ORDER }>(word, old, new) };
    found == old
}

/// Orders all that this CPU has written before all that it reads afterwards.
///
/// An exchange has this order on every architecture (`BPF_XCHG`). LLVM emits the unordered form of the
/// other operations if their result is unused.
#[inline(always)]
pub(crate) fn fence() {
    static FENCE: Word = Word::new();
    // SAFETY: globals lie in a map value, which is always there.
    unsafe { swap(FENCE.0.get(), 0) };
}

/// A global word, here and not in a map of its own: a program reads it without
/// a look-up. `AtomicU64` will not do: LLVM has no atomic stores for BPF.
pub(crate) struct Word(UnsafeCell<u64>);

// SAFETY: every access is one volatile load or store of an aligned word, which
// the CPU does in one piece, or an atomic addition.
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
        // SAFETY: globals lie in a map value, which is always there.
        unsafe { add(self.0.get(), amount) }
    }

    #[inline(always)]
    pub(crate) fn set(&self, value: u64) {
        // SAFETY: the cell is always there to be written; see `Sync`.
        unsafe { self.0.get().write_volatile(value) }
    }
}
