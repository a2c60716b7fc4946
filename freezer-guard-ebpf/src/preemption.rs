//! Programs that disable preemption.
//!
//! Below the level `enforce`, the kernel skips a program while it has interrupted another run of it on the
//! same CPU (`__bpf_prog_enter_recur` of `kernel/bpf/trampoline.c`). Other tasks can so get past a
//! program for as long as the interrupted one waits for the CPU.

use core::mem::{MaybeUninit, transmute};

use freezer_guard_abi::kfuncs;

/// The number that stands for one of [`kfuncs::NAMES`].
const fn stand_in(index: usize) -> usize {
    kfuncs::FIRST as usize + index
}

/// Calls `decide` with preemption disabled, if the kernel has the functions for that.
///
/// With interrupts disabled, `preempt_enable` does not schedule. So a task that was to be preempted
/// meanwhile is preempted after the program. The kernel can still preempt it in the few instructions
/// before and after: hence the program has copies.
#[inline(always)]
pub(crate) fn disabled(decide: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the loader puts functions with these arguments in the place of the numbers, or nothing,
    // and the verifier checks their use.
    unsafe {
        let disable = transmute::<usize, unsafe extern "C" fn()>(stand_in(0));
        let enable = transmute::<usize, unsafe extern "C" fn()>(stand_in(1));
        let save = transmute::<usize, unsafe extern "C" fn(*mut u64)>(stand_in(2));
        let restore = transmute::<usize, unsafe extern "C" fn(*mut u64)>(stand_in(3));
        disable();
        let answer = decide();
        let mut flags = MaybeUninit::uninit();
        save(flags.as_mut_ptr());
        enable();
        restore(flags.as_mut_ptr());
        answer
    }
}
