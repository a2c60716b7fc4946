//! Who belongs to a holder: counted in the kernel, thread by thread.

use aya_ebpf::{
    bindings::{BPF_ANY, seq_file},
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_seq_write},
};
use freezer_guard_ebpf::{
    CgroupKey, EventKind, Guard, GuardId, Member, Protection, TaskPointer, control,
};

use crate::{
    atomic,
    kernel::{self, Pointer, load, offset},
    maps::{GUARDS, MEMBERS, guard},
    telling,
};

/// EAGAIN: what fork returns at a limit.
const EAGAIN: i32 = 11;

/// The guard in force that the current task is a holder of.
#[inline(always)]
pub(crate) fn of_current() -> Option<GuardId> {
    of(kernel::current() as TaskPointer)
}

/// The guard in force that the thread is a holder of.
#[inline(always)]
pub(crate) fn of(task: TaskPointer) -> Option<GuardId> {
    let id = *MEMBERS.get_ptr(task).map(|id| {
        // SAFETY: a map value the verifier has seen checked; entries change
        // only for a task that starts or ends.
        unsafe { &*id }
    })?;
    guard(id).map(|_| id)
}

/// The child of a member becomes a member before it can run.
#[inline(always)]
pub(crate) fn inherit(child: TaskPointer) -> i32 {
    let Some(id) = of_current() else { return 0 };
    join(child, id)
}

#[inline(always)]
fn join(task: TaskPointer, id: GuardId) -> i32 {
    let Some(entry) = guard(id) else { return 0 };
    // BPF_ANY: what may stand there is about a task that is long gone.
    if MEMBERS.insert(task, id, u64::from(BPF_ANY)).is_err() {
        return -EAGAIN;
    }
    // SAFETY: a map value the verifier has seen checked.
    atomic::add(unsafe { &raw mut (*entry).members }, 1);
    0
}

/// The task is no member any more; the guard goes with its last one.
///
/// Both the tracepoint and `task_free` come here. Whoever removes the task's
/// entry counts it, and the kernel lets one of them remove it.
#[inline(always)]
pub(crate) fn leave(task: TaskPointer) {
    let Some(id) = MEMBERS.get_ptr(task) else {
        return;
    };
    // SAFETY: a map value the verifier has seen checked.
    let id = unsafe { *id };
    if MEMBERS.remove(task).is_err() {
        return;
    }
    let Some(entry) = guard(id) else { return };
    // SAFETY: as above.
    let members = unsafe { &raw mut (*entry).members };
    atomic::add(members, u64::MAX);
    // Two that leave at once may both read zero: the second finds no entry. A
    // count that has reached zero stays there: only members make members.
    if atomic::read(members) == 0 {
        end(id);
    }
}

/// See [`control`].
#[inline(always)]
pub(crate) fn control(operation: u64, id: GuardId, more: [u64; Protection::COUNT]) -> u32 {
    let Some(entry) = guard(id) else {
        return control::NO_GUARD;
    };
    match operation {
        control::ENROL => {
            if of_current().is_some_and(|own| own != id) {
                return control::OTHER_GUARD;
            }
            match join(kernel::current() as TaskPointer, id) {
                0 => control::DONE,
                _ => control::FULL,
            }
        }
        control::MARKED => {
            let target = CgroupKey::new(more[0] as u32, more[1]);
            telling::tell(id, EventKind::Begun, target);
            control::DONE
        }
        control::CHECKPOINTING => enter(entry, id, more),
        control::END => {
            end(id);
            control::DONE
        }
        _ => control::NO_GUARD,
    }
}

/// Enters CHECKPOINTING. Whatever is counted after the entry has begun to be
/// CHECKPOINTING is a violation; so the counters are compared after that.
#[inline(always)]
fn enter(entry: *mut Guard, id: GuardId, before: [u64; Protection::COUNT]) -> u32 {
    // SAFETY: a map value the verifier has seen checked; this is the only
    // writer of these fields, and one holder begins one guard.
    unsafe {
        (*entry).repaired = before;
        (&raw mut (*entry).checkpointing_ns).write_volatile(bpf_ktime_get_boot_ns());
        for (kind, before) in before.into_iter().enumerate() {
            if atomic::read(&raw const (*entry).disturbances[kind]) != before {
                (&raw mut (*entry).checkpointing_ns).write_volatile(0);
                return control::DISTURBED;
            }
        }
    }
    telling::tell(id, EventKind::Checkpointing, CgroupKey::new(0, 0));
    control::DONE
}

/// Removes the guard's entry; whoever removes it tells.
#[inline(always)]
fn end(id: GuardId) {
    if GUARDS.remove(id).is_ok() {
        telling::tell(id, EventKind::Ended, CgroupKey::new(0, 0));
    }
}

/// `struct bpf_iter__task`.
#[repr(C)]
pub(crate) struct TaskIter {
    meta: *const IterMeta,
    task: Pointer,
}

/// `struct bpf_iter_meta`, as far as it is used.
#[repr(C)]
struct IterMeta {
    seq: *mut seq_file,
}

/// Writes a [`Member`] if the iterator's task is one.
#[inline(always)]
pub(crate) fn list(ctx: *const TaskIter) {
    // SAFETY: the context of a task iterator; the verifier knows its layout.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return;
    }
    let Some(id) = MEMBERS.get_ptr(task as TaskPointer) else {
        return;
    };
    // SAFETY: a map value the verifier has seen checked.
    let id = unsafe { *id };
    if guard(id).is_none() {
        return;
    }
    // SAFETY: `task` is a `task_struct` that the verifier has seen checked.
    let (pid, tid) = unsafe {
        (
            load(task, offset!(task_struct_tgid)),
            load(task, offset!(task_struct_pid)),
        )
    };
    let member = Member {
        guard: id,
        pid,
        tid,
    };
    // SAFETY: `seq` comes from the context, `member` lives on our stack.
    unsafe {
        bpf_seq_write(
            (*meta).seq,
            (&raw const member).cast_mut().cast(),
            size_of::<Member>() as u32,
        );
    }
}
