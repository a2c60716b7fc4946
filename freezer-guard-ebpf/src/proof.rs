//! Function tracing that is switched off: from then on the kernel calls no program, and none of them
//! sees when it is switched on again.

use core::ffi::c_void;

use freezer_guard_abi::{GuardEntry, GuardId, name_words};

use crate::{
    each::{self, GO_ON},
    entry::Entry,
    kernel::{Pointer, load, offset, probe},
    lifetime,
    maps::GUARDS,
    spoiled,
};

/// The name of the switch, as it is compared.
const NAME: [u64; 2] = name_words("ftrace_enabled");

/// The return of `proc_dointvec(table, write, …)`, which has stored the number that somebody wrote to
/// a file of `/proc/sys`. The handler of the switch calls it, and acts on the number after it.
///
/// All guards in force get [`GuardEntry::UNPROVEN`], also if the kernel then refuses the switch.
#[inline(always)]
pub(crate) fn number_set(table: Pointer, write: i32, result: i32) {
    if write == 0 || result != 0 || !lifetime::is_any_held() {
        return;
    }
    // SAFETY: `table` is an argument of the function.
    let (name, number): (Pointer, Pointer) = unsafe {
        (
            load(table, offset!(ctl_table_procname)),
            load(table, offset!(ctl_table_data)),
        )
    };
    // The name has a NUL after its 14 letters; the byte after that may be any.
    let words = probe::<[u64; 2]>(name, 0);
    let is_switch =
        words.is_some_and(|[first, second]| first == NAME[0] && second & LETTERS == NAME[1]);
    if is_switch && probe::<u32>(number, 0) == Some(0) {
        each::element(&GUARDS, doubt, &mut 0_u64);
    }
}

/// Six letters and the NUL after them.
const LETTERS: u64 = (1 << 56) - 1;

extern "C" fn doubt(
    _: *const c_void,
    _: *const GuardId,
    guard: *mut GuardEntry,
    _: *mut u64,
) -> u64 {
    let entry = Entry::at(guard);
    entry.set_flags(GuardEntry::UNPROVEN);
    if entry.guard().is_in_force() && entry.is_checkpointing() {
        spoiled::violated(entry);
    }
    GO_ON
}
