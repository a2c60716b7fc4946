//! Counts changes of the memory of a target's tasks, where they take effect.

use aya_ebpf::helpers::bpf_probe_read_user;
use freezer_guard_abi::Act;

use crate::{
    kernel::{self, Pointer, load, offset, probe},
    maps::PROBES_BY_VMA,
    pid,
    task::Attempt,
};

/// The return of `access_remote_vm(mm, …, gup_flags)`.
///
/// The permission was asked for when the file was opened, and never again. A write that ends
/// with EFAULT may have changed pages before.
#[inline(always)]
pub(crate) fn accessed(mm: Pointer, flags: u32, result: i32) {
    /// `linux/mm_types.h`
    const FOLL_WRITE: u32 = 1;
    if flags & FOLL_WRITE != 0 && result > 0 {
        changed(Act::WriteMemory, mm);
    }
}

/// The return of `process_vm_rw`, which has asked for the permission and then copied.
#[inline(always)]
pub(crate) fn copied(pid: i32, is_write: i32, bytes: i64) {
    if is_write == 0 || bytes <= 0 {
        return;
    }
    let victim = pid::find(kernel::number(kernel::current()), pid as u64);
    if victim != 0 && victim != pid::UNKNOWN {
        Attempt::new(Act::WriteMemory, 0, victim as Pointer).done();
    }
}

/// The return of `set_swbp`, with the memory that was written.
///
/// A process that maps a file writes its breakpoints by itself.
#[inline(always)]
pub(crate) fn probed(memory: Pointer, result: i32) {
    let mm = match kernel::read_constant(&PROBES_BY_VMA) {
        0 => Some(memory),
        _ => probe(memory, offset!(vm_area_struct_vm_mm)),
    };
    let own: Option<Pointer> = probe(kernel::current(), offset!(task_struct_mm));
    if result >= 0
        && let Some(mm) = mm
        && own != Some(mm)
    {
        changed(Act::WriteMemory, mm);
    }
}

#[inline(always)]
fn changed(act: Act, mm: Pointer) {
    if let Some(victim) = probe::<Pointer>(mm, offset!(mm_struct_owner))
        && !victim.is_null()
    {
        Attempt::new(act, 0, victim).done();
    }
}

/// The return of `clear_refs_write`.
#[inline(always)]
pub(crate) fn cleared_refs(file: Pointer, buffer: u64, length: u64, result: i64) {
    if result <= 0 || is_harmless(buffer, length) {
        return;
    }
    // SAFETY: `file` is an argument of the function.
    let inode: Pointer = unsafe { load(file, offset!(file_f_inode)) };
    // An address for the helper to check.
    let inode = inode.wrapping_byte_sub(offset!(proc_inode_vfs_inode));
    if let Some(pid) = probe(inode, offset!(proc_inode_pid))
        && let Some(victim) = pid::task_of(pid)
        && !victim.is_null()
    {
        Attempt::new(Act::ClearDirty, 0, victim).done();
    }
}

/// Returns whether the text that is written, as `echo` writes it, leaves the dirty bits alone. Any
/// other text of the same meaning is taken for one that clears them.
#[inline(always)]
fn is_harmless(text: u64, length: u64) -> bool {
    /// `CLEAR_REFS_ALL`, `_ANON`, `_MAPPED` and `_MM_HIWATER_RSS` of `fs/proc/task_mmu.c`.
    const HARMLESS: [u8; 4] = *b"1235";
    // SAFETY: the helper checks the address.
    let byte = |place| unsafe { bpf_probe_read_user((text + place) as *const u8) };
    let is_alone = length == 1 || length == 2 && byte(1) == Ok(b'\n');
    is_alone && byte(0).is_ok_and(|kind| HARMLESS.contains(&kind))
}
