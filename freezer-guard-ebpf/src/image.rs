//! The image of a violated dump. If CRIU cannot write a file of its image, the dump fails, and CRIU
//! lets its tasks run on (`cr_dump_finish` of `criu/cr-dump.c`). The last of them is
//! `inventory.img`, without which no restore works.

use freezer_guard_abi::GuardEntry;

use crate::{
    audit::EBUSY,
    entry::Entry,
    kernel::{Pointer, load, offset, probe},
    membership, spoiled,
};

/// The end of the name of every file of an image, as it is compared.
const END: u32 = u32::from_ne_bytes(*b".img");

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
    let length = length as usize;
    length > size_of_val(&END)
        && probe(name, length - size_of_val(&END)) == Some(END)
        && membership::of_current()
            .and_then(Entry::of)
            .is_some_and(|entry| entry.flags() & GuardEntry::SPOILED != 0)
}
