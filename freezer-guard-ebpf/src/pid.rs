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
    each::{self, GO_ON, STOP},
    kernel::{self, Pointer, offset, probe, zero},
    maps::{TURNS, WRITING_CALLS},
};

/// As much of the text as is read, bytes. A pid has at most 7 digits.
const TEXT: usize = 16;

/// In place of a task that cannot be told.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// In place of a task if the text is not in memory just now, as a constant of a program may not be
/// after a fork. The kernel itself will read it all the same.
pub(crate) const UNREADABLE: u64 = u64::MAX - 1;

/// The task whose pid the current task is writing, seen from its own pid namespace as
/// `cgroup_procs_write_start` does: 0 when there is no such task, [`UNKNOWN`] or [`UNREADABLE`].
/// A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn being_written() -> u64 {
    let current = kernel::current() as u64;
    if kernel::is_kernel_thread(current as Pointer) {
        return UNKNOWN;
    }
    let Some((buffer, length)) = buffer() else {
        return UNKNOWN;
    };
    let Some(text) = read(buffer, length) else {
        return UNREADABLE;
    };
    match parse(text) {
        Some(0) => current,
        Some(number) => find(current, number.into()),
        None => UNKNOWN,
    }
}

/// Where the text that the current task writes begins, and its length, bytes. Any other way to
/// write than [`WRITING_CALLS`] (`splice`, `io_uring_enter` …) has its text elsewhere.
#[inline(always)]
fn buffer() -> Option<(u64, u64)> {
    // SAFETY: the helper knows where they are.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as Pointer;
    // 64 bits on x86, of which the lower half has the number.
    let call: u32 = probe(registers, offset!(pt_regs_call))?;
    let buffer: u64 = probe(registers, offset!(pt_regs_second))?;
    let length: u64 = probe(registers, offset!(pt_regs_third))?;
    let is_call = |number: &u32| call as usize == kernel::read_constant(number);
    if WRITING_CALLS.plain.iter().any(is_call) {
        return Some((buffer, length));
    }
    if length != 1 || !WRITING_CALLS.vectored.iter().any(is_call) {
        return None;
    }
    // SAFETY: the helper checks the address.
    let [buffer, length] = unsafe { bpf_probe_read_user(buffer as *const [u64; 2]) }.ok()?;
    Some((buffer, length))
}

/// The beginning of the buffer, padded with NUL.
#[inline(always)]
fn read(buffer: u64, length: u64) -> Option<[u64; 2]> {
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
        Some(text.assume_init())
    }
}

/// A plain decimal number, then white space or NUL. `kstrtoint(…, 0, …)` takes
/// more (signs, other bases, white space before): that is not worth a parser.
#[inline(always)]
fn parse(text: [u64; 2]) -> Option<u32> {
    let mut parsing = Parsing {
        text,
        number: zero(),
        digits: zero(),
        after: zero(),
        is_number: 1,
    };
    each::element(&TURNS, parse_byte, &mut parsing);
    (parsing.is_number != 0 && parsing.digits > 0).then_some(parsing.number)
}

/// How far a text is parsed.
struct Parsing {
    text: [u64; 2],
    number: u32,
    digits: u32,
    /// 1 after the last digit.
    after: u32,
    /// 0 when it is something else than a number.
    is_number: u32,
}

/// Parses the byte at this place, if there is one.
extern "C" fn parse_byte(
    _: *const c_void,
    place: *const u32,
    _: *mut u8,
    parsing: *mut Parsing,
) -> u64 {
    // SAFETY: a key of `TURNS`, and what `parse` passes from its own stack.
    let (place, parsing) = unsafe { (*place, &mut *parsing) };
    let word = match place {
        0..8 => parsing.text[0],
        8..16 => parsing.text[1],
        _ => return STOP,
    };
    match (word >> (8 * (place % 8))) as u8 {
        byte @ b'0'..=b'9' => {
            // A leading zero is octal.
            let is_octal = parsing.digits > 0 && parsing.number == 0;
            if parsing.after != 0 || parsing.digits > 9 || is_octal {
                parsing.is_number = 0;
                return STOP;
            }
            let digit = u32::from(byte - b'0');
            parsing.number = parsing.number.wrapping_mul(10).wrapping_add(digit);
            parsing.digits += 1;
        }
        0 => return STOP,
        b'\n' | b'\t' | b'\r' | b' ' if parsing.digits > 0 => parsing.after = 1,
        _ => {
            parsing.is_number = 0;
            return STOP;
        }
    }
    GO_ON
}

/// `find_task_by_vpid`: the task with this number in the pid namespace of `current`, 0 or
/// [`UNKNOWN`]. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find(current: u64, number: u64) -> u64 {
    find_in_namespace(current as Pointer, number as u32).map_or(UNKNOWN, |task| task as u64)
}

/// The number is looked up where the kernel does it, in the namespace's own table (`idr`,
/// `lib/xarray.c`).
#[inline(always)]
fn find_in_namespace(current: Pointer, number: u32) -> Option<Pointer> {
    let own: Pointer = probe(current, offset!(task_struct_thread_pid))?;
    let level: u32 = probe(own, offset!(pid_level))?;
    // `struct upid` is a number and a pointer: the pointer ends it.
    let upid = offset!(upid_ns) + size_of::<Pointer>();
    let here = offset!(pid_numbers) + level as usize * upid + offset!(upid_ns);
    let namespace: Pointer = probe(own, here)?;
    let table = offset!(pid_namespace_idr) + offset!(idr_idr_rt) + offset!(xarray_xa_head);
    let pid = entry(probe(namespace, table)?, number)?;
    task_of(pid)
}

/// The task of a `struct pid *`: null when there is none, `None` when it cannot be told.
#[inline(always)]
pub(crate) fn task_of(pid: Pointer) -> Option<Pointer> {
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

/// The entry of an xarray with this index: null when there is none, `None` when it cannot be
/// told.
#[inline(always)]
fn entry(head: Pointer, index: u32) -> Option<Pointer> {
    let mut descent = Descent {
        entry: head as u64,
        index,
        depth: zero(),
        is_lost: zero(),
    };
    each::element(&TURNS, descend, &mut descent);
    if descent.is_lost != 0 {
        return None;
    }
    // A tagged entry is the xarray's own and no pid.
    Some(match descent.entry & 3 {
        0 => descent.entry as Pointer,
        _ => ptr::null(),
    })
}

/// The way down an xarray.
struct Descent {
    /// Where it has come to: a node, which is tagged, or an entry.
    entry: u64,
    index: u32,
    depth: u32,
    /// 1 when a node could not be read.
    is_lost: u32,
}

extern "C" fn descend(_: *const c_void, _: *const u32, _: *mut u8, descent: *mut Descent) -> u64 {
    /// `XA_CHUNK_SHIFT`, without `CONFIG_BASE_SMALL`.
    const CHUNK: u32 = 6;
    /// Pids have 22 bits (`PID_MAX_LIMIT`).
    const LEVELS: u32 = 4;
    /// `xa_is_internal`
    const INTERNAL: u64 = 2;
    // SAFETY: `entry` passes it, from its own stack.
    let descent = unsafe { &mut *descent };
    if descent.entry & 3 != INTERNAL || descent.depth >= LEVELS {
        return STOP;
    }
    let node = (descent.entry - INTERNAL) as Pointer;
    let Some(shift) = probe::<u8>(node, offset!(xa_node_shift)).map(u32::from) else {
        descent.is_lost = 1;
        return STOP;
    };
    if shift > 31 {
        descent.is_lost = 1;
        return STOP;
    }
    // The number is beyond what the table holds.
    if descent.depth == 0 && shift + CHUNK < 32 && descent.index >> (shift + CHUNK) != 0 {
        descent.entry = 0;
        return STOP;
    }
    let slot = (descent.index >> shift) & ((1 << CHUNK) - 1);
    let slot = offset!(xa_node_slots) + slot as usize * size_of::<Pointer>();
    match probe(node, slot) {
        Some(entry) => descent.entry = entry,
        None => {
            descent.is_lost = 1;
            return STOP;
        }
    }
    descent.depth += 1;
    match shift {
        0 => STOP,
        _ => GO_ON,
    }
}
