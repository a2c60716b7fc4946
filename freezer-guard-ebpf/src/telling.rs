//! What is kept of a refusal or a disturbance: the guard's counters, who it
//! was, and an event for each reader.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_ktime_get_boot_ns,
    },
    maps::HashMap,
};
use freezer_guard_ebpf::{
    Act, CgroupKey, Event, EventKind, GuardId, Intruder, IntruderKey, MAX_READERS, Protection,
};

use crate::{
    atomic,
    kernel::opaque,
    maps::{INTRUDERS, LOST, READERS, VIOLATORS, guard},
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

/// Counts it, and no more.
#[inline(always)]
pub(crate) fn disturbed_by_somebody(id: GuardId, protection: Protection) {
    if let Some(guard) = guard(id) {
        // SAFETY: a map value that the verifier has seen checked.
        atomic::add(
            unsafe { &raw mut (*guard).disturbances[protection as usize] },
            1,
        );
    }
}

#[inline(never)]
fn record(id: GuardId, kind: EventKind, deed: &Deed) {
    let mut event = event(id, kind, deed);
    if !count(id, &mut event) {
        return;
    }
    let first = first(&event);
    match kind {
        EventKind::Denial => remember(&INTRUDERS, &event, &first),
        _ => remember(&VIOLATORS, &event, &first),
    }
    send(&event);
}

/// Counts the event in the guard; `false` when that has ended meanwhile.
#[inline(always)]
fn count(id: GuardId, event: &mut Event) -> bool {
    let Some(guard) = guard(id) else { return false };
    let protection = opaque(event.protection) as usize % Protection::COUNT;
    // SAFETY: `guard` is a map value that the verifier has seen checked.
    unsafe {
        let counter = match event.kind == EventKind::Denial as u32 {
            true => &raw mut (*guard).denials[protection],
            false => &raw mut (*guard).disturbances[protection],
        };
        atomic::add(counter, 1);
        event.checkpointing = u32::from((*guard).checkpointing_ns != 0);
    }
    event.guard = id;
    true
}

#[inline(always)]
fn event(id: GuardId, kind: EventKind, deed: &Deed) -> Event {
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
        checkpointing: 0,
        reserved: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
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
    send(&event(id, kind, &deed));
}

#[inline(never)]
fn send(event: &Event) {
    for reader in 0..MAX_READERS {
        // SAFETY: a ring stays as long as a program can see it, whoever takes
        // its place in the map.
        if let Some(ring) = unsafe { READERS.get(&reader) }
            && ring.output(event, 0).is_err()
            && let Some(lost) = LOST.get_ptr_mut(reader)
        {
            atomic::add(lost, 1);
        }
    }
}
