//! Records a refusal or a disturbance: in the guard's counters, in a map of
//! intruders, and as an event for each reader.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns},
    maps::HashMap,
};
use freezer_guard_abi::{
    Act, BY_INTERRUPT, CgroupKey, EventKind, GuardEntry, GuardId, Intruder, IntruderKey, LogLine,
    MAX_READERS, Protection, RawEvent,
};

use crate::{
    atomic::{self, Word},
    each::{self, GO_ON},
    entry::Entry,
    kernel, log,
    maps::{INTRUDERS, LOST, READERS, READING, VIOLATORS},
    spoiled,
};

/// What every refused operation returns, as the patch of 2009 had it.
pub(crate) const EBUSY: i32 = 16;

/// The thread that proves, by a write that a guard has to refuse, that the kernel calls the
/// programs. Its authority does not count, and its refusals are no denials.
pub(crate) static PROVER: Word = Word::new();

/// Whether the current thread is that.
#[inline(always)]
pub(crate) fn is_prover() -> bool {
    let tid = bpf_get_current_pid_tgid() as u32;
    PROVER.get() == u64::from(tid)
}

/// What the current task does or tries. Numbers without padding: it is an argument of a
/// global function, and the verifier wants to see all of it written.
#[repr(C)]
pub(crate) struct Access {
    cgroup: CgroupKey,
    act: u32,
    protection: u32,
    /// See [`Act`].
    pub(crate) detail: u32,
    /// The process it is done to; 0 when it is the cgroup.
    pub(crate) victim: u32,
}

impl Access {
    #[inline(always)]
    pub(crate) fn new(act: Act, protection: Protection, cgroup: CgroupKey) -> Self {
        Self::numbered(act as u32, protection as u32, cgroup)
    }

    /// The same for the numbers of an [`Act`] and of a [`Protection`].
    #[inline(always)]
    pub(crate) fn numbered(act: u32, protection: u32, cgroup: CgroupKey) -> Self {
        Self {
            cgroup,
            act,
            protection,
            detail: 0,
            victim: 0,
        }
    }
}

/// Counts what is being refused, and tells about it.
#[inline(always)]
pub(crate) fn refused(id: GuardId, access: &Access) {
    // Not in `record`: its frame is large enough.
    let about = u64::from(access.act) << 32 | u64::from(access.cgroup.hierarchy_id);
    let pid = bpf_get_current_pid_tgid() >> 32;
    log::write(LogLine::Refused, [id, pid, about, access.cgroup.kernfs_id]);
    record(id, EventKind::Denial as u64, access);
}

/// Counts what could not be refused, and tells about it.
#[inline(always)]
pub(crate) fn disturbed(id: GuardId, access: &Access) {
    record(id, EventKind::Disturbance as u64, access);
}

/// A global function: see `lookup`. `kind`: an [`EventKind`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record(id: GuardId, kind: u64, access: *const Access) -> u64 {
    // SAFETY: null or one of the callers', as the verifier has seen.
    let Some(access) = (unsafe { access.as_ref() }) else {
        return 0;
    };
    let counted = count(id, kind, access.protection.into());
    if counted == NOT_COUNTED {
        return 0;
    }
    let checkpointing = u32::from(counted == CHECKPOINTING);
    let mut event = event(id, kind as u32, access, checkpointing);
    if access.act == Act::Signal as u32 && access.detail & BY_INTERRUPT != 0 {
        // The task that runs has nothing to do with it.
        (event.pid, event.tid, event.uid) = (0, 0, 0);
        event.comm = kernel::NAME;
    }
    remember(&event);
    send(&mut event);
    0
}

/// The answers of [`count`]: it has counted an access, in a guard that is or is not CHECKPOINTING; or
/// it has counted none, since the guard has ended or the prover has made the access.
const COUNTED: u64 = 0;
const CHECKPOINTING: u64 = 1;
const NOT_COUNTED: u64 = 2;

/// Counts it in the guard. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count(id: GuardId, kind: u64, protection: u64) -> u64 {
    let is_denial = kind == EventKind::Denial as u64;
    if is_denial && is_prover() {
        return NOT_COUNTED;
    }
    let Some(entry) = Entry::of(id) else {
        return NOT_COUNTED;
    };
    if !is_denial {
        // Another CPU sees the disturbance before its count.
        atomic::fence();
    }
    entry.count(is_denial, protection as u32);
    if !is_denial {
        // The operation that enters CHECKPOINTING looks at the count afterwards: one of both sees the
        // other.
        atomic::fence();
    }
    if !entry.is_checkpointing() {
        return COUNTED;
    }
    if !is_denial {
        spoiled::violated(entry);
    }
    CHECKPOINTING
}

#[inline(always)]
fn event(id: GuardId, kind: u32, access: &Access, checkpointing: u32) -> RawEvent {
    let pid_tgid = bpf_get_current_pid_tgid();
    RawEvent {
        // SAFETY: no preconditions.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        guard: id,
        cgroup: access.cgroup,
        kind,
        act: access.act,
        protection: access.protection,
        detail: access.detail,
        victim: access.victim,
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        uid: bpf_get_current_uid_gid() as u32,
        checkpointing,
        reserved: 0,
        comm: kernel::name_of_current(),
    }
}

/// Counts it for the process that did it. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember(event: *const RawEvent) -> u64 {
    // SAFETY: null or that of `record`, as the verifier has seen.
    let Some(event) = (unsafe { event.as_ref() }) else {
        return 0;
    };
    match event.kind == EventKind::Denial as u32 {
        true => remember_in(&INTRUDERS, event),
        false => remember_in(&VIOLATORS, event),
    }
    0
}

#[inline(always)]
fn remember_in(who: &HashMap<IntruderKey, Intruder>, event: &RawEvent) {
    let key = event.key();
    if who.get_ptr(key).is_none() {
        // Another thread of it may have been faster, or the map is full: then
        // the guard's own counter has to do.
        let _ = who.insert(key, event.intruder(0), u64::from(BPF_NOEXIST));
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

/// Reports that a cgroup has become a target of the guard, and who owns that.
#[inline(always)]
pub(crate) fn emit_begun(id: GuardId, entry: Entry, target: CgroupKey) {
    let mut access = Access::numbered(0, 0, target);
    access.detail = u32::from(entry.flags() & GuardEntry::BY_USER != 0);
    access.victim = entry.guard().owner_uid as u32;
    announce(id, EventKind::Begun as u64, &access);
}

/// Tells that something has become of the guard.
#[inline(always)]
pub(crate) fn emit(id: GuardId, kind: EventKind, cgroup: CgroupKey) {
    emit_why(id, kind, cgroup, 0);
}

/// The same with a reason.
#[inline(always)]
pub(crate) fn emit_why(id: GuardId, kind: EventKind, cgroup: CgroupKey, detail: u32) {
    let mut access = Access::numbered(0, 0, cgroup);
    access.detail = detail;
    announce(id, kind as u64, &access);
}

/// A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn announce(id: GuardId, kind: u64, access: *const Access) -> u64 {
    // SAFETY: null or one of `emit_why`'s, as the verifier has seen.
    if let Some(access) = unsafe { access.as_ref() } {
        send(&mut event(id, kind as u32, access, 0));
    }
    0
}

/// Puts it into the ring buffer of each reader.
#[inline(always)]
fn send(event: &mut RawEvent) {
    if reading() != 0 {
        each::element(&LOST, send_to, event);
    }
}

/// Which readers there are, a bit each.
#[inline(always)]
fn reading() -> u64 {
    // SAFETY: a map value the verifier has seen checked.
    READING.get_ptr(0).map_or(0, |reading| unsafe { *reading })
}

extern "C" fn send_to(
    _: *const c_void,
    reader: *const u32,
    lost: *mut u64,
    event: *mut RawEvent,
) -> u64 {
    // SAFETY: a key of `LOST`, and what `send` passes from its stack.
    let (reader, event) = unsafe { (*reader, &*event) };
    // SAFETY: a ring stays as long as a program can see it, whatever takes its place in the
    // map.
    if reading() & 1 << (reader % MAX_READERS) != 0
        && let Some(ring) = unsafe { READERS.get(&reader) }
        && ring.output(event, 0).is_err()
    {
        // SAFETY: a value of `LOST`.
        unsafe { atomic::add(lost, 1) }
    }
    GO_ON
}
