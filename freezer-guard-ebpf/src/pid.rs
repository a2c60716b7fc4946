//! From the text that is being written to `tasks` or `cgroup.procs` to the task
//! it means.
//!
//! The text lies in the writer's memory, where another thread can change it
//! after we have looked: what is found here is good for refusing honest
//! writers. Whatever is moved in the end is seen by `migration`.

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::helpers::{
    bpf_probe_read_user,
    generated::{self, bpf_get_current_task_btf, bpf_task_pt_regs},
};

use crate::{
    kernel::{self, Pointer, offset, probe},
    maps::HAS_TASK_PT_REGS,
};

/// As much of the text as is read, bytes. A pid has at most 7 digits.
const TEXT: usize = 16;

/// The task whose pid the current task is writing, seen from its own pid
/// namespace as `cgroup_procs_write_start` does: null when there is no such task,
/// `None` when it cannot be told.
#[inline(always)]
pub(crate) fn being_written() -> Option<Pointer> {
    let current = kernel::current();
    if kernel::is_kernel_thread(current) {
        return None;
    }
    match kernel::opaque(parse(&text()?)?) {
        0 => Some(current),
        number => find(current, number),
    }
}

/// The system calls that take one buffer, and those that take a list of them
/// (`arch/x86/entry/syscalls/syscall_64.tbl`). Any other way to write
/// (`splice`, `io_uring_enter` …) has its text elsewhere.
const SYS_WRITE: u64 = 1;
const SYS_PWRITE64: u64 = 18;
const SYS_WRITEV: u64 = 20;
const SYS_PWRITEV: u64 = 296;
const SYS_PWRITEV2: u64 = 328;

/// What the current task writes.
#[inline(always)]
fn text() -> Option<[u8; TEXT]> {
    let registers = registers()?;
    let call: u64 = probe(registers, offset!(pt_regs_orig_ax))?;
    let buffer: u64 = probe(registers, offset!(pt_regs_si))?;
    let length: u64 = probe(registers, offset!(pt_regs_dx))?;
    match call {
        SYS_WRITE | SYS_PWRITE64 => read(buffer, length),
        SYS_WRITEV | SYS_PWRITEV | SYS_PWRITEV2 if length == 1 => {
            // SAFETY: the helper checks the address.
            let [buffer, length] =
                unsafe { bpf_probe_read_user(buffer as *const [u64; 2]) }.ok()?;
            read(buffer, length)
        }
        _ => None,
    }
}

/// The registers with which the current task has entered the kernel.
#[inline(always)]
fn registers() -> Option<Pointer> {
    if kernel::read_offset(&HAS_TASK_PT_REGS) != 0 {
        // SAFETY: the helper knows where they are. Where there is no such helper
        // the verifier sees that this is not reached.
        return Some(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as Pointer);
    }
    // `task_pt_regs` before 5.15: at the top of the stack.
    /// `THREAD_SIZE`, without `CONFIG_KASAN`.
    const STACK: usize = 16 * 1024;
    /// `struct pt_regs`, on x86-64 before 6.9.
    const REGISTERS: usize = 21 * 8;
    let stack: Pointer = probe(kernel::current(), offset!(task_struct_stack))?;
    Some(stack.wrapping_byte_add(STACK - REGISTERS))
}

/// The beginning of the buffer, padded with NUL.
#[inline(always)]
fn read(buffer: u64, length: u64) -> Option<[u8; TEXT]> {
    let length = if length > TEXT as u64 {
        TEXT as u64
    } else {
        length
    };
    let mut text = MaybeUninit::<[u64; 2]>::uninit();
    let start = text.as_mut_ptr().cast::<u64>();
    // SAFETY: both words are written; the helper writes at most `TEXT` bytes
    // and checks the source.
    unsafe {
        start.write_volatile(0);
        start.add(1).write_volatile(0);
        if generated::bpf_probe_read_user(start.cast(), length as u32, buffer as *const c_void) < 0
        {
            return None;
        }
        Some(core::mem::transmute::<[u64; 2], [u8; TEXT]>(
            text.assume_init(),
        ))
    }
}

/// A plain decimal number, then white space or NUL. `kstrtoint(…, 0, …)` takes
/// more (signs, other bases, white space before): that is not worth a parser.
#[inline(always)]
fn parse(text: &[u8; TEXT]) -> Option<u32> {
    let mut number = 0_u32;
    let mut digits = 0_u32;
    let mut ended = false;
    for byte in text {
        match byte {
            // A leading zero is octal.
            b'0'..=b'9' if ended || digits > 9 || (digits > 0 && number == 0) => return None,
            b'0'..=b'9' => {
                number = number
                    .wrapping_mul(10)
                    .wrapping_add(u32::from(*byte - b'0'));
                digits += 1;
            }
            0 => break,
            b'\n' | b'\t' | b'\r' | b' ' if digits > 0 => ended = true,
            _ => return None,
        }
    }
    (digits > 0).then_some(number)
}

/// `find_task_by_vpid`: the task with this number in the pid namespace of
/// `current`. The number is looked up where the kernel does it, in the
/// namespace's own table (`idr`, `lib/xarray.c`).
#[inline(always)]
fn find(current: Pointer, number: u32) -> Option<Pointer> {
    let own: Pointer = probe(current, offset!(task_struct_thread_pid))?;
    let level: u32 = probe(own, offset!(pid_level))?;
    // `struct upid` is a number and a pointer: the pointer ends it.
    let upid = offset!(upid_ns) + size_of::<Pointer>();
    let here = offset!(pid_numbers) + level as usize * upid + offset!(upid_ns);
    let namespace: Pointer = probe(own, here)?;
    let table = offset!(pid_namespace_idr) + offset!(idr_idr_rt) + offset!(xarray_xa_head);
    let pid = entry(probe(namespace, table)?, number)?;
    if pid.is_null() {
        return Some(pid);
    }
    // `tasks[PIDTYPE_PID].first` points at the task's `pid_links[PIDTYPE_PID]`.
    let link: Pointer = probe(pid, offset!(pid_tasks))?;
    if link.is_null() {
        return Some(link);
    }
    // An address for the helper to check, not one to look through.
    Some(link.wrapping_byte_sub(offset!(task_struct_pid_links)))
}

/// The entry of an xarray with this index, null when there is none.
#[inline(always)]
fn entry(head: Pointer, index: u32) -> Option<Pointer> {
    /// `XA_CHUNK_SHIFT`, without `CONFIG_BASE_SMALL`.
    const CHUNK: u32 = 6;
    /// Pids have 22 bits (`PID_MAX_LIMIT`).
    const LEVELS: u32 = 4;
    /// `xa_is_internal`
    const INTERNAL: usize = 2;
    let mut entry = head;
    let mut top = true;
    for _ in 0..LEVELS {
        if entry as usize & 3 != INTERNAL {
            break;
        }
        let node = entry.wrapping_byte_sub(INTERNAL);
        let shift = u32::from(probe::<u8>(node, offset!(xa_node_shift))?);
        if shift > 31 {
            return None;
        }
        if top && shift + CHUNK < 32 && index >> (shift + CHUNK) != 0 {
            return Some(ptr::null());
        }
        top = false;
        let slot = (index >> shift) & ((1 << CHUNK) - 1);
        entry = probe(
            node,
            offset!(xa_node_slots) + slot as usize * size_of::<Pointer>(),
        )?;
        if shift == 0 {
            break;
        }
    }
    // A tagged entry is the xarray's own and no pid.
    Some(if entry as usize & 3 == 0 {
        entry
    } else {
        ptr::null()
    })
}
