//! What user space has done in the kernel: guards begin, enter CHECKPOINTING and end, and
//! processes become holders.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_seq_write},
};
use freezer_guard_abi::{
    ASKED_FOR, CgroupKey, ENROLLED, EventKind, Guard, GuardId, NO_ROOM, Protection, TaskPointer,
    control,
};

use crate::{
    atomic,
    authority::Credentials,
    kernel::{self, Pointer, load, offset},
    lifetime::{STALE, end, hold, is_held_no_more},
    maps::{ENROLLING, GUARDS, TEMPLATES, guard},
    membership::{TaskIter, is_taken, join, leave, of},
    telling,
};

/// See [`control`].
#[inline(always)]
pub(crate) fn control(operation: u64, id: GuardId, more: [u64; Protection::COUNT]) -> u32 {
    match operation {
        control::BEGIN => return begin(id),
        control::STALE => return STALE.get() as u32,
        control::SWEPT => {
            STALE.add(id.wrapping_neg());
            return control::DONE;
        }
        _ => {}
    }
    let Some(entry) = guard(id) else {
        return control::NO_GUARD;
    };
    match operation {
        control::ENROL => {
            if is_taken(kernel::current() as TaskPointer, id) {
                return control::OTHER_GUARD;
            }
            match join(kernel::current() as TaskPointer, id) {
                0 => control::DONE,
                _ => control::FULL,
            }
        }
        control::MARKED => {
            let target = CgroupKey::new(more[0] as u32, more[1]);
            telling::tell_begun(id, entry, target);
            control::DONE
        }
        control::CHECKPOINTING => enter(entry, id, more),
        control::END => {
            if more[0] != 0 {
                // SAFETY: a map value the verifier has seen checked.
                unsafe { (*entry).flags &= !Guard::FROZE };
            }
            end(id, true);
            if more[1] != 0 {
                STALE.add(1);
            }
            control::DONE
        }
        control::LEAVE => {
            leave(kernel::current());
            control::DONE
        }
        control::FOUND => {
            // SAFETY: as above.
            unsafe { (*entry).flags |= more[0] & (Guard::FROZE | Guard::FOUND_FROZEN) };
            control::DONE
        }
        control::ARMED => {
            // SAFETY: a map value the verifier has seen checked; one user-space
            // writer at a time.
            unsafe {
                for (index, level) in (*entry).levels.iter_mut().enumerate() {
                    *level = (more[0] >> (8 * index)) as u32 & 0xff;
                }
                // Of several targets the first counts.
                if (*entry).missed_before == Guard::UNKNOWN {
                    (*entry).missed_before = more[1];
                }
            }
            control::DONE
        }
        _ => control::NO_GUARD,
    }
}

/// Begins a guard, with the current thread as its holder: whatever becomes of that, no
/// entry stays that nobody holds.
#[inline(always)]
fn begin(id: GuardId) -> u32 {
    let task = kernel::current() as TaskPointer;
    if is_taken(task, id) {
        return control::OTHER_GUARD;
    }
    let Some(template) = TEMPLATES.get_ptr(ASKED_FOR) else {
        return control::FULL;
    };
    // SAFETY: a map value the verifier has seen checked.
    if GUARDS
        .insert(id, unsafe { &*template }, u64::from(BPF_NOEXIST))
        .is_err()
    {
        return control::FULL;
    }
    let Some(entry) = guard(id) else {
        return control::FULL;
    };
    let is_held = hold(entry);
    if is_held && join(task, id) == 0 {
        return control::DONE;
    }
    // SAFETY: as above.
    is_held_no_more(unsafe { (*entry).flags });
    let _ = GUARDS.remove(id);
    control::FULL
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

/// Makes the iterator's task a member of the guard that [`ENROLLING`] names if it
/// belongs to that process, or comes from one that has become a member already.
#[inline(always)]
pub(crate) fn enrol(ctx: *const TaskIter) {
    // SAFETY: the context of a task iterator; the verifier knows its layout.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return;
    }
    let Some(enrolling) = ENROLLING.get(0) else {
        return;
    };
    if kernel::is_exiting(task) || of(task as TaskPointer) == Some(enrolling.guard) {
        return;
    }
    // SAFETY: `task` is a `task_struct` that the verifier has seen checked.
    let (pid, leader, parent): (u32, TaskPointer, TaskPointer) = unsafe {
        (
            load(task, offset!(task_struct_tgid)),
            load(task, offset!(task_struct_group_leader)),
            load(task, offset!(task_struct_real_parent)),
        )
    };
    let is_in = |task| of(task) == Some(enrolling.guard);
    if u64::from(pid) != enrolling.pid && !is_in(leader) && !is_in(parent) {
        return;
    }
    if is_taken(task as TaskPointer, enrolling.guard) {
        return;
    }
    if u64::from(pid) == enrolling.pid {
        own(enrolling.guard, task);
    }
    let said = match join(task as TaskPointer, enrolling.guard) {
        0 => ENROLLED,
        _ => NO_ROOM,
    };
    // It may have been counted out before it was counted in.
    if kernel::is_exiting(task) {
        leave(task);
    }
    // SAFETY: `seq` comes from the context, `said` lives on our stack.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const said).cast_mut().cast(), 1);
    }
}

/// Gives the guard the authority of its holder. If user space has named a user as its owner,
/// it stays his.
#[inline(always)]
fn own(id: GuardId, holder: Pointer) {
    let (Some(entry), Some(holder)) = (guard(id), Credentials::of(holder)) else {
        return;
    };
    // SAFETY: a map value the verifier has seen checked. The guard has been begun and its
    // holder is being enrolled: under the lock of user space, which writes nothing else.
    unsafe {
        if (*entry).flags & Guard::BY_USER == 0 {
            if holder.is_root_of_host() {
                return;
            }
            (*entry).flags |= Guard::BY_USER;
            (*entry).owner_uid = holder.uid.into();
        }
        (*entry).owner_ns = holder.user_ns;
    }
}
