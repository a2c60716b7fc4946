//! The operations that user space asks for: a guard begins, enters CHECKPOINTING or ends, and
//! a process becomes a holder.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, generated::bpf_seq_write};
use freezer_guard_abi::{
    ASKED_FOR, AncestorKey, CgroupKey, ENROLLED, EventKind, GuardEntry, GuardId, LogLine, NO_ROOM,
    TaskPointer,
    control::{Answer, MORE, Operation},
};

use crate::{
    audit,
    authority::Credentials,
    entry::Entry,
    kernel::{self, Pointer, load, offset},
    lifetime::{STALE, all_candidates, end, hold, is_any_held, is_held_no_more},
    log, lookup,
    maps::{ANCESTORS, ENROLLING, GUARDS, TARGETS, TEMPLATES},
    marks,
    membership::{TaskIter, is_taken, join, leave, of},
    migration,
};

/// Does an [`Operation`] and returns an [`Answer`], or a number.
#[inline(always)]
pub(crate) fn control(operation: u64, id: GuardId, more: [u64; MORE]) -> u32 {
    match Operation::numbered(operation) {
        Some(Operation::Stale) => STALE.get() as u32,
        Some(Operation::Candidates) => all_candidates() as u32,
        Some(operation) => operate(operation, id, more) as u32,
        None => Answer::NoGuard as u32,
    }
}

#[inline(always)]
fn operate(operation: Operation, id: GuardId, more: [u64; MORE]) -> Answer {
    match operation {
        Operation::Begin => return begin(id),
        Operation::Swept => {
            STALE.add(id.wrapping_neg());
            return Answer::Done;
        }
        Operation::Unmark => return unmark(CgroupKey::new(more[0] as u32, more[1]), id, more[2]),
        Operation::Prove => {
            audit::PROVER.set(id);
            return Answer::Done;
        }
        _ => {}
    }
    let Some(entry) = Entry::of(id) else {
        return Answer::NoGuard;
    };
    match operation {
        Operation::Enrol => {
            let task = kernel::task(kernel::current());
            if is_taken(task, id) {
                return Answer::OtherGuard;
            }
            if join(task, id) != 0 {
                return Answer::Full;
            }
        }
        Operation::Marked => {
            audit::emit_begun(id, entry, CgroupKey::new(more[0] as u32, more[1]));
        }
        Operation::SetFlag => {
            const OURS: u64 =
                GuardEntry::FROZEN_BY_US | GuardEntry::FOUND_FROZEN | GuardEntry::UNPROVEN;
            entry.set_flags(more[0] & OURS);
        }
        Operation::Checkpointing => return enter(entry, id, more),
        Operation::Armed => entry.arm(more[0], more[1]),
        // It may belong to another guard, which it was not to leave.
        Operation::Leave if of(kernel::task(kernel::current())) == Some(id) => {
            leave(kernel::current());
        }
        Operation::Leave => return Answer::OtherGuard,
        Operation::End => {
            if more[0] != 0 {
                entry.clear_flags(GuardEntry::FROZEN_BY_US);
            }
            end(id, true);
            if more[1] != 0 {
                STALE.add(1);
            }
        }
        Operation::Begin
        | Operation::Stale
        | Operation::Candidates
        | Operation::Swept
        | Operation::Unmark
        | Operation::Prove => {}
    }
    Answer::Done
}

/// Removes the mark of a guard that has ended or is being ended: on a target, or above one.
#[inline(always)]
fn unmark(cgroup: CgroupKey, ended: GuardId, is_above: u64) -> Answer {
    match is_above {
        0 => marks::remove(&TARGETS, &cgroup, ended),
        _ => {
            let last = AncestorKey::new(cgroup, AncestorKey::ANY);
            marks::remove(&ANCESTORS, &last, ended);
        }
    }
    Answer::Done
}

/// Begins a guard, with the current thread as its holder. If that fails, no entry stays.
#[inline(always)]
fn begin(id: GuardId) -> Answer {
    let task = kernel::task(kernel::current());
    if is_taken(task, id) {
        return Answer::OtherGuard;
    }
    let Some(template) = TEMPLATES.get(ASKED_FOR) else {
        return Answer::Full;
    };
    if !Entry::make(id, template) {
        return Answer::Full;
    }
    let Some(entry) = Entry::of(id) else {
        return Answer::Full;
    };
    if !is_any_held() {
        migration::forget_refused();
    }
    let is_held = hold(id) != 0;
    if is_held && join(task, id) == 0 {
        return Answer::Done;
    }
    is_held_no_more(entry.flags());
    let _ = GUARDS.remove(id);
    Answer::Full
}

/// Enters CHECKPOINTING. A disturbance that is counted from then on is a violation, so this
/// compares the counters after it has entered.
#[inline(always)]
fn enter(entry: Entry, id: GuardId, before: [u64; MORE]) -> Answer {
    if entry.guard().is_automatic() {
        // An automatic guard has entered by itself.
        return Answer::NoGuard;
    }
    entry.set_repaired(before);
    // SAFETY: no preconditions.
    entry.set_checkpointing(unsafe { bpf_ktime_get_boot_ns() });
    for (protection, before) in before.into_iter().enumerate() {
        let now = entry.disturbances(protection);
        if now != before {
            log::write(LogLine::Disturbed, [id, protection as u64, before, now]);
            entry.set_checkpointing(0);
            return Answer::Disturbed;
        }
    }
    audit::emit(id, EventKind::Checkpointing, CgroupKey::new(0, 0));
    Answer::Done
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
    if kernel::is_exiting(task) || of(kernel::task(task)) == Some(enrolling.guard) {
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
    let is_named = u64::from(pid) == enrolling.pid;
    if !is_named && !is_in(leader) && !is_in(parent) {
        return;
    }
    // A task of the target does not hold the guard, even as a child of the holder.
    if !is_named && lookup::covers(enrolling.guard, task) {
        return;
    }
    if is_taken(kernel::task(task), enrolling.guard) {
        return;
    }
    if is_named {
        own(enrolling.guard, task);
    }
    let output = match join(kernel::task(task), enrolling.guard) {
        0 => ENROLLED,
        _ => NO_ROOM,
    };
    // It may have been counted out before it was counted in.
    if kernel::is_exiting(task) {
        leave(task);
    }
    // SAFETY: `seq` comes from the context, `output` lives on our stack.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const output).cast_mut().cast(), 1);
    }
}

/// Gives the guard the authority of its holder. If user space has named a user as its owner,
/// it stays his.
#[inline(always)]
fn own(id: GuardId, holder: Pointer) {
    let Some(entry) = Entry::of(id) else { return };
    let Some(holder) = Credentials::of(holder) else {
        return;
    };
    let mut uid = entry.guard().owner_uid;
    if entry.flags() & GuardEntry::BY_USER == 0 {
        if holder.is_root_of_host() {
            return;
        }
        uid = holder.uid.into();
    }
    entry.set_owner(uid, holder.user_ns);
    entry.set_flags(GuardEntry::BY_USER);
}
