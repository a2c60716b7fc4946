//! What is kept of a refusal or a disturbance: the guard's counters, who it
//! was, and an event for each reader.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        generated::bpf_get_current_comm,
    },
    maps::HashMap,
};
use freezer_guard_ebpf::{
    Act, CgroupKey, Event, EventKind, GuardId, Intruder, IntruderKey, MAX_READERS, Protection,
};

use crate::{
    atomic,
    kernel::opaque,
    maps::{INTRUDERS, LOST, READERS, READING, VIOLATORS, guard},
};

/// What every refused operation returns, as the patch of 2009 had it.
pub(crate) const EBUSY: i32 = 16;

/// What the current task does or tries.
pub(crate) struct Deed {
    pub(crate) act: Act,
    pub(crate) protection: Protection,
    pub(crate) detail: u32,
    pub(crate) cgroup: CgroupKey,
    pub(crate) victim: u32,
}

/// Counts what is being refused, and tells about it.
#[inline(always)]
pub(crate) fn refused(id: GuardId, deed: &Deed) {
    record(id, EventKind::Denial, deed);
}

/// Counts what could not be refused, and tells about it.
#[inline(always)]
pub(crate) fn disturbed(id: GuardId, deed: &Deed) {
    record(id, EventKind::Disturbance, deed);
}

#[inline(never)]
fn record(id: GuardId, kind: EventKind, deed: &Deed) {
    let Some(checkpointing) = count(id, kind, deed.protection) else {
        return;
    };
    let event = event(id, kind, deed, checkpointing);
    let first = first(&event);
    match kind {
        EventKind::Denial => remember(&INTRUDERS, &event, &first),
        _ => remember(&VIOLATORS, &event, &first),
    }
    send(&event);
}

/// Counts it in the guard; whether that is CHECKPOINTING, 1 or 0. `None` when it has
/// ended meanwhile.
#[inline(always)]
fn count(id: GuardId, kind: EventKind, protection: Protection) -> Option<u32> {
    let guard = guard(id)?;
    let protection = opaque(protection as u32) as usize % Protection::COUNT;
    // SAFETY: `guard` is a map value that the verifier has seen checked.
    unsafe {
        let counter = match kind {
            EventKind::Denial => &raw mut (*guard).denials[protection],
            _ => &raw mut (*guard).disturbances[protection],
        };
        atomic::add(counter, 1);
        Some(u32::from((*guard).checkpointing_ns != 0))
    }
}

#[inline(always)]
fn event(id: GuardId, kind: EventKind, deed: &Deed, checkpointing: u32) -> Event {
    let pid_tgid = bpf_get_current_pid_tgid();
    Event {
        // SAFETY: no preconditions.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        guard: id,
        cgroup: deed.cgroup,
        kind: kind as u32,
        act: deed.act as u32,
        protection: deed.protection as u32,
        detail: deed.detail,
        victim: deed.victim,
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        uid: bpf_get_current_uid_gid() as u32,
        checkpointing,
        reserved: 0,
        comm: comm(),
    }
}

/// The name of the current thread. (aya's function makes it of bytes, by a call of
/// `memset` that has a frame of its own.)
#[inline(always)]
fn comm() -> [u8; 16] {
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

/// What is remembered of who does something for the first time.
#[inline(always)]
fn first(event: &Event) -> Intruder {
    Intruder {
        count: 0,
        first_ns: event.time_ns,
        last_ns: event.time_ns,
        cgroup: event.cgroup,
        victim: event.victim,
        uid: event.uid,
        comm: event.comm,
    }
}

#[inline(always)]
fn remember(who: &HashMap<IntruderKey, Intruder>, event: &Event, first: &Intruder) {
    let key = IntruderKey {
        guard: event.guard,
        pid: event.pid,
        act: event.act,
        detail: event.detail,
        checkpointing: event.checkpointing,
    };
    if who.get_ptr(key).is_none() {
        // Another thread of it may have been faster, or the map is full: then
        // the guard's own counter has to do.
        let _ = who.insert(key, first, u64::from(BPF_NOEXIST));
    }
    if let Some(intruder) = who.get_ptr_mut(key) {
        // SAFETY: a map value that the verifier has seen checked. `last_ns` is
        // one aligned word: of two writers one wins.
        unsafe {
            atomic::add(&raw mut (*intruder).count, 1);
            (*intruder).last_ns = event.time_ns;
        }
    }
}

/// Tells that something has become of the guard.
#[inline(always)]
pub(crate) fn tell(id: GuardId, kind: EventKind, cgroup: CgroupKey) {
    tell_why(id, kind, cgroup, 0);
}

/// The same with a reason.
#[inline(always)]
pub(crate) fn tell_why(id: GuardId, kind: EventKind, cgroup: CgroupKey, detail: u32) {
    let deed = Deed {
        act: Act::Write,
        protection: Protection::Freeze,
        detail,
        cgroup,
        victim: 0,
    };
    send(&event(id, kind, &deed, 0));
}

#[inline(never)]
fn send(event: &Event) {
    // SAFETY: a map value the verifier has seen checked.
    let reading = READING.get_ptr(0).map_or(0, |reading| unsafe { *reading });
    if reading == 0 {
        return;
    }
    for reader in 0..MAX_READERS {
        // SAFETY: a ring stays as long as a program can see it, whoever takes
        // its place in the map.
        if reading & 1 << reader != 0
            && let Some(ring) = unsafe { READERS.get(&reader) }
            && ring.output(event, 0).is_err()
            && let Some(lost) = LOST.get_ptr_mut(reader)
        {
            atomic::add(lost, 1);
        }
    }
}
