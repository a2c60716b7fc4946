//! Who belongs to a holder: counted in the kernel, thread by thread.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, seq_file},
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_seq_write},
};
use freezer_guard_ebpf::{
    ASKED_FOR, CHUNK, CgroupKey, ENROLLED, EventKind, Guard, GuardId, MAX_GUARDS, Member, NO_ROOM,
    Protection, TaskPointer, control,
};

use crate::{
    atomic::{self, Word},
    automatic,
    covering::occupied,
    kernel::{self, Pointer, load, offset, opaque},
    maps::{ENDED, ENROLLING, GUARDS, MEMBERS, PLACES, TEMPLATES, guard},
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
    let Some(entry) = GUARDS.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: as above.
    let (members, flags, leader) = unsafe {
        (
            &raw mut (*entry).members,
            &raw mut (*entry).flags,
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
            LEFT.add(1);
        }
    }
    // The leader marks it as over and then looks at the count; the others count and then
    // look for that: at least one of them sees both.
    if leader.is_some() && atomic::read(flags) & Guard::OVER != 0 && is_last() {
        let _ = GUARDS.remove(id);
    }
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
        leave(task);
        return false;
    }
    own != id
}

/// See [`control`].
#[inline(always)]
pub(crate) fn control(operation: u64, id: GuardId, more: [u64; Protection::COUNT]) -> u32 {
    match operation {
        control::BEGIN => return begin(id),
        control::LEFT => return LEFT.get() as u32,
        control::TIDIED => {
            LEFT.add(id.wrapping_neg());
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
            telling::tell(id, EventKind::Begun, target);
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
                LEFT.add(1);
            }
            control::DONE
        }
        control::LEAVE => {
            leave(kernel::current() as TaskPointer);
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
    let is_held = hold(entry, id);
    if is_held && join(task, id) == 0 {
        return control::DONE;
    }
    if is_held {
        // SAFETY: as above.
        let_go(id, unsafe { (*entry).place });
    }
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

/// How many have ended whose marks user space has not removed.
static LEFT: Word = Word::new();

/// The guard is held from here on. Comes before its marks. Whether there was a place
/// for it.
#[inline(always)]
pub(crate) fn hold(entry: *mut Guard, id: GuardId) -> bool {
    // SAFETY: a map value the verifier has seen checked. One task begins a guard.
    unsafe {
        if (*entry).flags & Guard::HELD == 0 {
            let place = take_place(id);
            if place >= u64::from(freezer_guard_ebpf::PLACES) {
                return false;
            }
            (*entry).place = place;
            (*entry).flags |= Guard::HELD;
            HELD.add(1);
        }
    }
    true
}

/// The guard, which had this place, is not held any more. Of several who end it, one
/// finds it in its place: so it is counted out once.
#[inline(always)]
fn let_go(id: GuardId, place: u64) {
    // SAFETY: a map value the verifier has seen checked.
    let is_there = PLACES
        .get_ptr(place)
        .is_some_and(|own| unsafe { *own } == id);
    if is_there && PLACES.remove(place).is_ok() {
        HELD.add(u64::MAX);
        occupied(place).add(u64::MAX);
    }
}

/// Takes a place for the guard; [`freezer_guard_ebpf::PLACES`] if there is none.
///
/// It is one of the first twice as many as there are guards, so that those who look for
/// guards have few to look through.
#[inline(never)]
fn take_place(id: GuardId) -> u64 {
    const NONE: u64 = freezer_guard_ebpf::PLACES as u64;
    /// Of a linear congruential generator (Knuth's MMIX).
    const FACTOR: u64 = 6_364_136_223_846_793_005;
    const TRIES: u32 = 32;
    let held = HELD.get();
    if held >= u64::from(MAX_GUARDS) {
        return NONE;
    }
    let room = (2 * held + u64::from(CHUNK)).min(NONE);
    let mut number = id;
    for _ in 0..TRIES {
        number = number.wrapping_mul(FACTOR).wrapping_add(1);
        let place = (number >> 32) % room;
        // Who is faster has it.
        if PLACES.insert(place, id, u64::from(BPF_NOEXIST)).is_ok() {
            occupied(place).add(1);
            return place;
        }
    }
    NONE
}

/// Ends the guard; whoever does it tells. Nobody may have been there to read what
/// became of it: that is kept. `remove`: nobody will come to take the entry away.
/// (One with members left must not be used again at once: they may be counting.)
#[inline(always)]
fn end(id: GuardId, remove: bool) {
    let Some(entry) = guard(id) else { return };
    // SAFETY: a map value the verifier has seen checked. Whoever else ends it
    // writes the same.
    let (value, is_candidate, flags, place) = unsafe {
        (*entry).ended_ns = bpf_ktime_get_boot_ns();
        let value = &*entry;
        (value, value.is_candidate(), value.flags, value.place)
    };
    if !is_candidate {
        // Without room for it, who reads of the end finds no more than that.
        let _ = ENDED.insert(id, value, u64::from(BPF_ANY));
    }
    if remove {
        if GUARDS.remove(id).is_err() {
            return;
        }
    } else {
        // SAFETY: as above; the leader ends once.
        unsafe { (*entry).flags = flags | Guard::OVER };
    }
    if flags & Guard::HELD != 0 {
        let_go(id, place);
    }
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
    let said = match join(task as TaskPointer, enrolling.guard) {
        0 => ENROLLED,
        _ => NO_ROOM,
    };
    // It may have been counted out before it was counted in.
    if kernel::is_exiting(task) {
        leave(task as TaskPointer);
    }
    // SAFETY: `seq` comes from the context, `said` lives on our stack.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const said).cast_mut().cast(), 1);
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
