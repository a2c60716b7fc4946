//! Reading the kernel's structs.

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::helpers::{
    bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_get_current_comm,
};
use freezer_guard_abi::TaskPointer;

/// The offset of a struct member, as user space found it. Read as volatile, or
/// the compiler would take the zero it sees for the value.
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::read_constant(&crate::maps::OFFSETS.$field)
    };
}
pub(crate) use offset;

#[inline(always)]
pub(crate) fn read_constant(constant: &u32) -> usize {
    // SAFETY: a reference is valid to read from.
    unsafe { ptr::read_volatile(constant) as usize }
}

/// A pointer to some struct of the kernel's.
pub(crate) type Pointer = *const c_void;

/// Loads a member from a pointer whose type the verifier knows.
///
/// # Safety
/// `base` comes from the program's context through loads like this one. If the
/// memory is gone the load yields zero (`bpf_insn` of mode `PROBE_MEM`).
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(base: Pointer, offset: usize) -> T {
    // SAFETY: the caller's, and the verifier checks the member's offset and size.
    unsafe { ptr::read_volatile(base.byte_add(offset).cast::<T>()) }
}

/// Reads a member through a pointer whose type the verifier has lost (it came
/// out of a `void *`).
#[inline(always)]
pub(crate) fn probe<T: Copy>(base: Pointer, offset: usize) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails on a bad one.
    unsafe { bpf_probe_read_kernel(base.byte_add(offset).cast::<T>()) }.ok()
}

/// A pointer as a plain number. The verifier does not let a pointer that it has a type for be
/// an argument of a global function; read back from our own stack it has none.
#[inline(always)]
pub(crate) fn number(pointer: Pointer) -> u64 {
    let mut cell = MaybeUninit::<Pointer>::uninit();
    cell.write(pointer);
    probe(cell.as_ptr().cast(), 0).unwrap_or(0)
}

/// The same number, of which neither the compiler nor the verifier knows anything.
/// The compiler must not leave out the check of an index that the verifier wants
/// to see; the verifier must not walk what follows once for each range of values.
#[inline(always)]
pub(crate) fn opaque(number: u32) -> u32 {
    let mut cell = MaybeUninit::<u32>::uninit();
    let start = cell.as_mut_ptr().cast::<u8>();
    // SAFETY: all four bytes are written, one by one, then read as a word.
    unsafe {
        for (index, byte) in number.to_ne_bytes().into_iter().enumerate() {
            start.add(index).write_volatile(byte);
        }
        cell.as_ptr().read_volatile()
    }
}

/// A zero of which the verifier does not know that it is one: see `each`. (It remembers the zeros
/// that are written to the stack.)
#[inline(always)]
pub(crate) fn zero() -> u32 {
    opaque(1).wrapping_sub(1)
}

/// The task that runs.
#[inline(always)]
pub(crate) fn current() -> Pointer {
    // SAFETY: no preconditions.
    unsafe { bpf_get_current_task() as Pointer }
}

/// A task as maps name it.
#[inline(always)]
pub(crate) fn task(task: Pointer) -> TaskPointer {
    TaskPointer(task as u64)
}

/// The name of the task that runs (`comm`). (aya's function makes it of bytes, by a call of
/// `memset` that has a frame of its own.)
#[inline(always)]
pub(crate) fn name_of_current() -> [u8; 16] {
    let mut words = MaybeUninit::<[u64; 2]>::uninit();
    let start = words.as_mut_ptr().cast::<u64>();
    // SAFETY: both words are written; the helper writes at most 16 bytes.
    unsafe {
        start.write_volatile(0);
        start.add(1).write_volatile(0);
        bpf_get_current_comm(start.cast(), 16);
        core::mem::transmute::<[u64; 2], [u8; 16]>(words.assume_init())
    }
}

/// The name of the kernel itself, where a task's would stand.
pub(crate) const NAME: [u8; 16] = *b"kernel\0\0\0\0\0\0\0\0\0\0";

/// `PF_EXITING` of `include/linux/sched.h`: it is on its way out.
const PF_EXITING: u32 = 0x4;
/// `PF_IO_WORKER` and `PF_KTHREAD`: it has no system call of its own.
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x20_0000;

#[inline(always)]
fn flags(task: Pointer) -> u32 {
    probe(task, offset!(task_struct_flags)).unwrap_or(0)
}

/// Whether the task is ending.
#[inline(always)]
pub(crate) fn is_exiting(task: Pointer) -> bool {
    flags(task) & PF_EXITING != 0
}

/// Whether a signal has ended the task, which has ended.
#[inline(always)]
pub(crate) fn is_killed(task: Pointer) -> bool {
    /// The signal in what wait(2) returns.
    const SIGNAL: u32 = 0x7f;
    probe::<u32>(task, offset!(task_struct_exit_code)).is_some_and(|code| code & SIGNAL != 0)
}

/// Whether the task's whole process is ending: a signal that nobody handles has
/// come, or it ends by itself.
#[inline(always)]
pub(crate) fn is_group_exiting(task: Pointer) -> bool {
    /// `SIGNAL_GROUP_EXIT` of `include/linux/sched/signal.h`
    const GROUP_EXIT: u32 = 4;
    probe::<Pointer>(task, offset!(task_struct_signal))
        .and_then(|signal| probe::<u32>(signal, offset!(signal_struct_flags)))
        .is_some_and(|flags| flags & GROUP_EXIT != 0)
}

/// Whether the task is one of the kernel's own.
#[inline(always)]
pub(crate) fn is_kernel_thread(task: Pointer) -> bool {
    flags(task) & (PF_IO_WORKER | PF_KTHREAD) != 0
}

/// The process (thread group) of the task, in the initial pid namespace.
#[inline(always)]
pub(crate) fn tgid(task: Pointer) -> u32 {
    probe(task, offset!(task_struct_tgid)).unwrap_or(0)
}
