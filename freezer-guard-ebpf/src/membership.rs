//! Who belongs to a holder: counted in the kernel, thread by thread.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, seq_file},
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_seq_write},
};
use freezer_guard_ebpf::{
    ASKED_FOR, CgroupKey, ENROLLED, EventKind, Guard, GuardId, MAX_GUARDS, MAX_GUARDS_BY_USERS,
    MAX_MEMBERS_BY_USER, Member, NO_ROOM, Protection, TaskPointer, control,
};

use crate::{
    atomic::{self, Word},
    authority::Credentials,
    automatic,
    kernel::{self, Pointer, load, offset, opaque},
    maps::{ENDED, ENROLLING, GUARDS, MEMBERS, TEMPLATES, guard},
    telling,
};

/// EAGAIN: what fork returns at a limit.
const EAGAIN: i32 = 11;

/// The guard in force that the current task is a holder of.
#[inline(always)]
pub(crate) fn of_current() -> Option<GuardId> {
    of(kernel::current() as TaskPointer)
}

/// As [`of_current`], but never `None`: then it is an id that no guard has. So
/// what is done with it has one path for the verifier to walk, and not two.
#[inline(always)]
pub(crate) fn writer() -> Option<GuardId> {
    const NOBODY: GuardId = 0;
    let id = of_current().unwrap_or(NOBODY);
    let half = |shift: u32| u64::from(opaque((id >> shift) as u32)) << shift;
    Some(half(0) | half(32))
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

/// Returns 1 if the thread belongs to any holder, else 0. A global function: see `covering`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_member(task: TaskPointer) -> u64 {
    of(task).is_some().into()
}

/// Makes the child of a member a member before it can run, unless it is one already. The
/// answer is that of `task_alloc`.
#[inline(always)]
pub(crate) fn inherit(child: TaskPointer) -> i32 {
    match of_current() {
        Some(id) if MEMBERS.get_ptr(child).is_none() => join(child, id),
        _ => 0,
    }
}

#[inline(always)]
fn join(task: TaskPointer, id: GuardId) -> i32 {
    let Some(entry) = guard(id) else { return 0 };
    // SAFETY: a map value the verifier has seen checked.
    let (flags, members) = unsafe { ((*entry).flags, atomic::read(&raw const (*entry).members)) };
    if flags & Guard::BY_USER != 0 && members >= u64::from(MAX_MEMBERS_BY_USER) {
        return -EAGAIN;
    }
    if MEMBERS.insert(task, id, u64::from(BPF_ANY)).is_err() {
        return -EAGAIN;
    }
    // SAFETY: a map value the verifier has seen checked.
    atomic::add(unsafe { &raw mut (*entry).members }, 1);
    0
}

/// Takes the task out of its holder. The guard goes with its last member.
///
/// The end of a task comes here, and so does a fork that fails. One of them removes the
/// task's entry, and that one counts.
#[inline(always)]
pub(crate) fn leave(task: Pointer) {
    if MEMBERS.get_ptr(task as TaskPointer).is_some() {
        remove(kernel::number(task));
    }
}

/// A global function: see `covering`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remove(task: TaskPointer) -> u64 {
    let Some(id) = MEMBERS.get_ptr(task) else {
        return 0;
    };
    // SAFETY: a map value the verifier has seen checked.
    let id = unsafe { *id };
    if MEMBERS.remove(task).is_err() {
        return 0;
    }
    let Some(entry) = GUARDS.get_ptr_mut(id) else {
        return 0;
    };
    // SAFETY: as above.
    let (members, flags, ended_ns, leader) = unsafe {
        (
            &raw mut (*entry).members,
            &raw mut (*entry).flags,
            &raw const (*entry).ended_ns,
            automatic::leader(&*entry),
        )
    };
    atomic::add(members, u64::MAX);
    // Two that leave at once may both read zero: the second finds no entry. A
    // count that has reached zero stays there: only members make members.
    let is_last = || atomic::read(members) == 0;
    let ends = match leader {
        Some(leader) => leader == task,
        None => is_last(),
    };
    if ends {
        let was_held = atomic::read(flags) & Guard::HELD != 0;
        end(id, leader.is_none());
        // Not before: or it may be looked for while it is still in force.
        if was_held {
            STALE.add(1);
        }
    }
    // The leader ends it and then looks at the count; the others count and then look
    // whether it has ended: at least one of them sees both.
    if leader.is_some() && atomic::read(ended_ns) != 0 && is_last() {
        let _ = GUARDS.remove(id);
    }
    0
}

/// Whether the thread belongs to the holder of another guard. A candidate guards
/// nothing: it is taken out of that.
#[inline(always)]
fn is_taken(task: TaskPointer, id: GuardId) -> bool {
    let Some(own) = of(task) else { return false };
    let Some(entry) = guard(own) else {
        return false;
    };
    // SAFETY: a map value the verifier has seen checked.
    if own != id && unsafe { (*entry).is_candidate() } {
        leave(task as Pointer);
        return false;
    }
    own != id
}

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

/// How many guards are held, candidates left out. At 0 no tripwire has anything
/// to notice, and none looks.
static HELD: Word = Word::new();

/// Whether any guard is held.
#[inline(always)]
pub(crate) fn is_any_held() -> bool {
    HELD.get() != 0
}

/// How many of them are guards of users.
static HELD_BY_USERS: Word = Word::new();

/// How many have ended whose marks user space has not removed.
static STALE: Word = Word::new();

/// Counts the guard among those that are held. Comes before its marks. Whether there was
/// room for one more.
#[inline(always)]
pub(crate) fn hold(entry: *mut Guard) -> bool {
    // SAFETY: a map value the verifier has seen checked. One task begins a guard.
    unsafe {
        if (*entry).flags & Guard::HELD != 0 {
            return true;
        }
        if HELD.get() >= u64::from(MAX_GUARDS) {
            return false;
        }
        if (*entry).flags & Guard::BY_USER != 0 {
            // Root's guards find room.
            if HELD_BY_USERS.get() >= u64::from(MAX_GUARDS_BY_USERS) {
                return false;
            }
            (*entry).flags |= Guard::HELD_BY_USER;
            HELD_BY_USERS.add(1);
        }
        (*entry).flags |= Guard::HELD;
        HELD.add(1);
    }
    true
}

/// Takes the guard with these flags out of that count.
#[inline(always)]
fn is_held_no_more(flags: u64) {
    if flags & Guard::HELD != 0 {
        HELD.add(u64::MAX);
    }
    if flags & Guard::HELD_BY_USER != 0 {
        HELD_BY_USERS.add(u64::MAX);
    }
}

/// Ends the guard, tells the readers, and keeps what became of it until somebody has read
/// that. Of several that end it at once, the first does all this.
///
/// `remove`: no member is left that will remove the entry. (An entry with members left must
/// not be used again at once: they may be counting in it.)
#[inline(always)]
fn end(id: GuardId, remove: bool) {
    let Some(entry) = guard(id) else { return };
    // SAFETY: `bpf_ktime_get_boot_ns` has no preconditions; a map value the verifier has
    // seen checked.
    let (before, value) = unsafe {
        let now = bpf_ktime_get_boot_ns();
        (atomic::swap(&raw mut (*entry).ended_ns, now), &*entry)
    };
    if before != 0 {
        return;
    }
    let (is_candidate, flags) = (value.is_candidate(), value.flags);
    if !is_candidate {
        // Without room for it, a reader of the event finds no more than that.
        let _ = ENDED.insert(id, value, u64::from(BPF_ANY));
    }
    if remove {
        let _ = GUARDS.remove(id);
    }
    is_held_no_more(flags);
    automatic::has_ended(flags, is_candidate);
    if !is_candidate {
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
    let Some(id) = of(task as TaskPointer) else {
        return;
    };
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
