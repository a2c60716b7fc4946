//! The image of a violated dump. CRIU writes `inventory.img` after all other files of an image, and
//! no restore works without it. If CRIU cannot write it, the dump fails, and CRIU lets its tasks
//! run on (`cr_dump_finish` of `criu/cr-dump.c`).

use freezer_guard_abi::GuardEntry;

use crate::{
    audit::EBUSY,
    entry::Entry,
    kernel::{Pointer, load, offset, probe},
    membership, spoiled,
};

/// `inventory.img`, as it is compared.
const LENGTH: u32 = 13;
const START: u64 = u64::from_ne_bytes(*b"inventor");
const END: u64 = u64::from_ne_bytes(*b"tory.img");
const END_OFFSET: usize = LENGTH as usize - size_of::<u64>();

/// The answer of `file_permission` for a write to a file that is no cgroup's.
#[inline(always)]
pub(crate) fn check_write(file: Pointer) -> i32 {
    match spoiled::is_any() && is_refused(file) {
        true => -EBUSY,
        false => 0,
    }
}

/// Not inlined: every write would pay for it.
#[inline(never)]
fn is_refused(file: Pointer) -> bool {
    // SAFETY: `file` is the hook's argument; everything is loaded from it.
    let (name, length): (Pointer, u32) = unsafe {
        let dentry: Pointer = load(file, offset!(file_f_path) + offset!(path_dentry));
        let d_name = offset!(dentry_d_name);
        (
            load(dentry, d_name + offset!(qstr_name)),
            load(dentry, d_name + offset!(qstr_len)),
        )
    };
    length == LENGTH
        && probe(name, 0) == Some(START)
        && probe(name, END_OFFSET) == Some(END)
        && membership::of_current()
            .and_then(Entry::of)
            .is_some_and(|entry| entry.flags() & GuardEntry::SPOILED != 0)
}
