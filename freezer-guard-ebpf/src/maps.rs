//! The maps. User space pins every one under its name (but for the globals).
//!
//! Before Linux 6.1 all are preallocated: `task_free` and the tracepoint run where a
//! program may not allocate. From then on those that grow with the number of guards
//! are not.

use aya_ebpf::{
    btf_maps::{HashOfMaps, RingBuf},
    macros::{btf_map, map},
    maps::{Array, HashMap},
};
use freezer_guard_ebpf::{
    AncestorKey, CgroupKey, Enrolling, Event, Guard, GuardId, Intruder, IntruderKey, KernelOffsets,
    MAX_ENDED, MAX_INTRUDERS, MAX_MEMBERS, MAX_READERS, NO_FREEZER, RING_BYTES, TaskPointer,
};

/// User space sets how many, as the kernel allows.
const SIZED_LATER: u32 = 1;

#[map]
pub(crate) static GUARDS: HashMap<GuardId, Guard> = HashMap::with_max_entries(SIZED_LATER, 0);
#[map]
pub(crate) static ENDED: HashMap<GuardId, Guard> = HashMap::with_max_entries(MAX_ENDED, 0);
#[map]
pub(crate) static TEMPLATES: Array<Guard> = Array::with_max_entries(2, 0);
#[map]
pub(crate) static PLACES: HashMap<u64, GuardId> = HashMap::with_max_entries(SIZED_LATER, 0);
#[map]
pub(crate) static ENROLLING: Array<Enrolling> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static TARGETS: HashMap<CgroupKey, GuardId> = HashMap::with_max_entries(SIZED_LATER, 0);
#[map]
pub(crate) static ANCESTORS: HashMap<AncestorKey, GuardId> =
    HashMap::with_max_entries(SIZED_LATER, 0);
#[map]
pub(crate) static MEMBERS: HashMap<TaskPointer, GuardId> =
    HashMap::with_max_entries(MAX_MEMBERS, 0);
#[map]
pub(crate) static INTRUDERS: HashMap<IntruderKey, Intruder> =
    HashMap::with_max_entries(MAX_INTRUDERS, 0);
#[map]
pub(crate) static VIOLATORS: HashMap<IntruderKey, Intruder> =
    HashMap::with_max_entries(MAX_INTRUDERS, 0);
/// Each reader of events puts a ring buffer of its own here.
#[btf_map]
pub(crate) static READERS: HashOfMaps<
    u32,
    RingBuf<Event, { RING_BYTES as usize }>,
    { MAX_READERS as usize },
> = HashOfMaps::new();
#[map]
pub(crate) static LOST: Array<u64> = Array::with_max_entries(MAX_READERS, 0);
#[map]
pub(crate) static READING: Array<u64> = Array::with_max_entries(1, 0);

/// A task that is being moved, from entry to return of `cgroup_attach_task`.
#[repr(C)]
pub(crate) struct Attaching {
    /// The thread that moves it, or 0.
    pub(crate) task: TaskPointer,
    /// The guard that it leaves and that minds, or 0.
    pub(crate) from: GuardId,
    /// The guard that it enters and that minds, or 0.
    pub(crate) to: GuardId,
    pub(crate) from_key: CgroupKey,
    pub(crate) to_key: CgroupKey,
    /// The process that is moved.
    pub(crate) victim: u64,
}

/// One is enough: `cgroup_mutex` is held.
#[map]
pub(crate) static ATTACHING: Array<Attaching> = Array::with_max_entries(1, 0);

/// Filled in before the load; see [`KernelOffsets`].
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: KernelOffsets = KernelOffsets::ZERO;

/// `freezer_cgrp_id`, filled in before the load.
#[unsafe(no_mangle)]
pub(crate) static FREEZER: u32 = NO_FREEZER;

/// Whether there is the helper `bpf_task_pt_regs` (Linux 5.15), filled in before
/// the load.
#[unsafe(no_mangle)]
pub(crate) static HAS_TASK_PT_REGS: u32 = 0;

/// The guard's entry, if it is in force.
#[inline(always)]
pub(crate) fn guard(id: GuardId) -> Option<*mut Guard> {
    // SAFETY: a map value that the verifier has seen checked.
    GUARDS
        .get_ptr_mut(id)
        .filter(|entry| unsafe { (**entry).flags } & Guard::OVER == 0)
}
