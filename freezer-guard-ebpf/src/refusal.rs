//! What is kept of a refusal: the guard's counters, the intruder, an event.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_ktime_get_boot_ns,
    },
};
use freezer_guard_ebpf::{CgroupKey, Denial, GuardId, Intruder, IntruderKey, Protection};

use crate::{
    atomic,
    maps::{EVENTS, INTRUDERS, guard},
};

/// What every refused operation returns, as the patch of 2009 had it.
pub(crate) const EBUSY: i32 = 16;

/// Counts the refusal and tells about it.
#[inline(always)]
pub(crate) fn record(id: GuardId, cgroup: CgroupKey, file: u32, protection: Protection) {
    // Ended meanwhile: then nobody counts any more.
    let Some(guard) = guard(id) else { return };
    // SAFETY: `guard` is a map value that the verifier has seen checked.
    atomic::add(unsafe { &raw mut (*guard).denials[protection as usize] }, 1);
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    let comm = bpf_get_current_comm().unwrap_or_default();

    let key = IntruderKey {
        guard: id,
        pid,
        protection: protection as u32,
    };
    if INTRUDERS.get_ptr(key).is_none() {
        // Another thread of the intruder may have been faster, or the map is
        // full: then the guard's own counter has to do.
        let _ = INTRUDERS.insert(key, Intruder { count: 0, comm }, u64::from(BPF_NOEXIST));
    }
    if let Some(intruder) = INTRUDERS.get_ptr_mut(key) {
        // SAFETY: a map value that the verifier has seen checked.
        atomic::add(unsafe { &raw mut (*intruder).count }, 1);
    }

    let event = Denial {
        // SAFETY: no preconditions.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        guard: id,
        cgroup,
        pid,
        tid,
        uid: bpf_get_current_uid_gid() as u32,
        file,
        comm,
    };
    if EVENTS.output::<Denial>(&event, 0).is_err() {
        // SAFETY: as above.
        atomic::add(unsafe { &raw mut (*guard).lost_events }, 1);
    }
}
