//! Who belongs to a holder: counted in the kernel, thread by thread.

use aya_ebpf::{
    bindings::{BPF_ANY, seq_file},
    helpers::generated::bpf_seq_write,
};
use freezer_guard_abi::{
    GuardEntry, GuardId, LogLine, MAX_MEMBERS_BY_GUARD, MAX_MEMBERS_BY_USER, Member, TaskPointer,
};

use crate::{
    atomic,
    entry::Entry,
    kernel::{self, Pointer, load, offset, opaque},
    lifetime, log,
    maps::{GUARDS, MEMBERS, word},
};

/// EAGAIN: what fork returns at a limit.
const EAGAIN: i32 = 11;

/// Added to the guard's id in `MEMBERS` for a task that the holder has put into the target to
/// restore it there. The task has the holder's rights, but does not hold the guard. (An id is a
/// time in ns, and never has this bit.)
const RESTORED: u64 = 1 << 63;

/// The guard in force that the current task is a holder of.
#[inline(always)]
pub(crate) fn of_current() -> Option<GuardId> {
    of(kernel::task(kernel::current()))
}

/// As [`of_current`], but an id that no guard has in place of `None`. So the verifier walks the code
/// that uses it once, and not twice.
#[inline(always)]
pub(crate) fn writer() -> GuardId {
    const NOBODY: GuardId = 0;
    let id = of_current().unwrap_or(NOBODY);
    let half = |shift: u32| u64::from(opaque((id >> shift) as u32)) << shift;
    half(0) | half(32)
}

/// The guard in force that the thread is a holder of.
#[inline(always)]
pub(crate) fn of(task: TaskPointer) -> Option<GuardId> {
    let id = word(&MEMBERS, task)? & !RESTORED;
    Entry::of(id).map(|_| id)
}

/// Returns whether the thread belongs to any holder.
#[inline(always)]
pub(crate) fn is_member(task: TaskPointer) -> bool {
    is_member_numbered(task.0) != 0
}

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_member_numbered(task: u64) -> u64 {
    of(TaskPointer(task)).is_some().into()
}

/// Makes the child of a member a member before it can run, unless it is one already. The
/// answer is that of `task_alloc`.
///
/// An entry of another guard does not count. An earlier task at the same address left it when it
/// ended while no program was attached; or the parent was a candidate until just now.
#[inline(always)]
pub(crate) fn inherit(child: TaskPointer) -> i32 {
    match word(&MEMBERS, kernel::task(kernel::current())) {
        Some(own) if word(&MEMBERS, child) != Some(own) => join(child, own),
        _ => 0,
    }
}

/// The same when the child is about to run: its parent may have been put into the target since
/// `task_alloc`.
#[inline(always)]
pub(crate) fn inherit_late(child: TaskPointer) {
    match (
        word(&MEMBERS, kernel::task(kernel::current())),
        word(&MEMBERS, child),
    ) {
        (Some(own), Some(id)) if id != own && id | RESTORED == own => hold_no_more(child, id),
        // A fork that cannot be enrolled was refused by `task_alloc`. Below the level `enforce` it
        // cannot be refused: the child is an outsider then.
        _ => _ = inherit(child),
    }
}

/// Makes the task a member: `own` is the guard's id, with [`RESTORED`] for one that does not hold it.
#[inline(always)]
pub(crate) fn join(task: TaskPointer, own: GuardId) -> i32 {
    let id = own & !RESTORED;
    let Some(entry) = Entry::of(id) else { return 0 };
    let most = match entry.flags() & GuardEntry::BY_USER {
        0 => MAX_MEMBERS_BY_GUARD,
        _ => MAX_MEMBERS_BY_USER,
    };
    let is_full = entry.members() >= most.into();
    if is_full || MEMBERS.insert(task, own, u64::from(BPF_ANY)).is_err() {
        let pid = kernel::tgid(kernel::current()).into();
        log::write(LogLine::NoRoom, [id, pid, 0, 0]);
        return -EAGAIN;
    }
    if own == id {
        entry.add_member();
    }
    0
}

/// Takes the task out of its holder. The guard goes with its last member.
///
/// The end of a task comes here, and so does a fork that fails. One of them removes the
/// task's entry, and that one counts.
#[inline(always)]
pub(crate) fn leave(task: Pointer) {
    if MEMBERS.get_ptr(kernel::task(task)).is_some() {
        remove(kernel::number(task));
    }
}

/// A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remove(task: u64) -> u64 {
    let task = TaskPointer(task);
    let Some(own) = word(&MEMBERS, task) else {
        return 0;
    };
    if MEMBERS.remove(task).is_ok() && own & RESTORED == 0 {
        count_out(task.0, own);
    }
    0
}

/// Counts out a task that has held the guard. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_out(task: u64, id: GuardId) -> u64 {
    let Some(entry) = Entry::of_any(id) else {
        return 0;
    };
    let leader = entry.leader();
    if entry.guard().leader.0 == task
        && entry.flags() & GuardEntry::LEFT_FROZEN == 0
        && !kernel::is_killed(task as Pointer)
    {
        // It has left the cgroup frozen on purpose.
        entry.clear_flags(GuardEntry::FROZEN_BY_US);
    }
    // The flags are seen before the count.
    atomic::fence();
    entry.remove_member();
    atomic::fence();
    // Two that leave at once may both read zero: the second finds no entry. A
    // count that has reached zero stays there: only members make members.
    let is_last = || entry.members() == 0;
    let ends = match leader {
        Some(leader) => leader.0 == task,
        None => is_last(),
    };
    if ends && !entry.has_ended() {
        let was_held = entry.flags() & GuardEntry::HELD != 0;
        lifetime::end(id, leader.is_none());
        // Not before: or it may be looked for while it is still in force.
        if was_held {
            lifetime::STALE.add(1);
        }
    }
    // The leader ends it and then looks at the count; the others count and then look
    // whether it has ended: at least one of them sees both. (`Entry::end` exchanges.)
    let is_unread = || entry.flags() & GuardEntry::UNREAD != 0;
    if entry.has_ended() && is_last() && !is_unread() {
        let _ = GUARDS.remove(id);
    }
    0
}

/// The guard in force that the thread holds.
#[inline(always)]
pub(crate) fn held_by(task: TaskPointer) -> Option<GuardId> {
    let id = word(&MEMBERS, task)?;
    // With `RESTORED` it is the id of no guard.
    Entry::of(id).map(|_| id)
}

/// The thread holds the guard no longer, and keeps the holder's rights.
#[inline(always)]
pub(crate) fn hold_no_more(task: TaskPointer, id: GuardId) {
    set_restored(kernel::number(task.0 as Pointer), id);
}

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn set_restored(task: u64, id: GuardId) -> u64 {
    let task = TaskPointer(task);
    if let Some(own) = MEMBERS.get_ptr_mut(task) {
        // SAFETY: a map value that the verifier has seen checked.
        if unsafe { atomic::set_bits(own, RESTORED) } & RESTORED == 0 {
            count_out(task.0, id);
        }
    }
    0
}

/// Whether the thread belongs to the holder of another guard. A candidate guards
/// nothing: it is taken out of that.
#[inline(always)]
pub(crate) fn is_taken(task: TaskPointer, id: GuardId) -> bool {
    let Some(own) = of(task) else { return false };
    let Some(entry) = Entry::of(own) else {
        return false;
    };
    if own != id && entry.guard().is_candidate() {
        leave(task.0 as Pointer);
        return false;
    }
    own != id
}

/// `struct bpf_iter__task`.
#[repr(C)]
pub(crate) struct TaskIter {
    pub(crate) meta: *const IterMeta,
    pub(crate) task: Pointer,
}

/// `struct bpf_iter_meta`, as far as it is used.
#[repr(C)]
pub(crate) struct IterMeta {
    pub(crate) seq: *mut seq_file,
}

/// Writes a [`Member`] if the iterator's task is one.
#[inline(always)]
pub(crate) fn list(ctx: *const TaskIter) {
    // SAFETY: the context of a task iterator; the verifier knows its layout.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return;
    }
    // Since Linux 7.2 a task leaves its cgroups, and so the holder, some time after its
    // parent has heard of its end.
    if kernel::is_exiting(task) {
        return;
    }
    let Some(own) = word(&MEMBERS, kernel::task(task)) else {
        return;
    };
    let id = own & !RESTORED;
    if Entry::of(id).is_none() {
        // A restored task outlives its guard, and its entry shall not.
        if Entry::of_any(id).is_none() {
            let _ = MEMBERS.remove(kernel::task(task));
        }
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
