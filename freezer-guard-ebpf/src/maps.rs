//! The maps. User space pins every one under its name (but for the globals).
//!
//! User space sets the size of those that grow with guards, members and intruders. Their
//! memory is taken by need, where the kernel lets a program allocate anywhere (Linux 6.1).

use aya_ebpf::{
    btf_maps::{HashOfMaps, RingBuf},
    macros::{btf_map, map},
    maps::{Array, HashMap},
};
use freezer_guard_abi::{
    AncestorKey, CgroupKey, Enrolling, FileName, GuardEntry, GuardId, Intruder, IntruderKey,
    KernelOffsets, MAX_CHECKPOINTERS, MAX_DEPTH, MAX_ENDED, MAX_INTRUDERS, MAX_MEMBERS,
    MAX_READERS, NO_FREEZER, RING_BYTES, RawEvent, TaskPointer, WritingCalls,
};

/// User space sets how many, as the kernel allows.
const SIZED_LATER: u32 = 1;

#[map]
pub(crate) static GUARDS: HashMap<GuardId, GuardEntry> = HashMap::with_max_entries(SIZED_LATER, 0);
#[map]
pub(crate) static ENDED: HashMap<GuardId, GuardEntry> = HashMap::with_max_entries(MAX_ENDED, 0);
#[map]
pub(crate) static TEMPLATES: Array<GuardEntry> = Array::with_max_entries(2, 0);
#[map]
pub(crate) static CHECKPOINTERS: HashMap<FileName, u8> =
    HashMap::with_max_entries(MAX_CHECKPOINTERS, 0);
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
    RingBuf<RawEvent, { RING_BYTES as usize }>,
    { MAX_READERS as usize },
> = HashOfMaps::new();
#[map]
pub(crate) static LOST: Array<u64> = Array::with_max_entries(MAX_READERS, 0);
#[map]
pub(crate) static READING: Array<u64> = Array::with_max_entries(1, 0);

/// Has nothing in it: a loop over it takes [`MAX_DEPTH`] turns, see `each`.
#[map]
pub(crate) static TURNS: Array<u8> = Array::with_max_entries(MAX_DEPTH, 0);

/// Filled in before the load; see [`KernelOffsets`].
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: KernelOffsets = KernelOffsets::ZERO;

/// `freezer_cgrp_id`, filled in before the load.
#[unsafe(no_mangle)]
pub(crate) static FREEZER: u32 = NO_FREEZER;

/// See [`names::PROBES_BY_VMA`](freezer_guard_abi::names::PROBES_BY_VMA).
#[unsafe(no_mangle)]
pub(crate) static PROBES_BY_VMA: u32 = 0;

/// The numbers that system calls have on this machine, filled in before the load.
#[unsafe(no_mangle)]
pub(crate) static WRITING_CALLS: WritingCalls = WritingCalls::NONE;

/// A copy of a map's value that is one word.
#[inline(always)]
pub(crate) fn word<K>(map: &HashMap<K, u64>, key: K) -> Option<u64> {
    // SAFETY: a map value that the verifier has seen checked; the read is one load.
    map.get_ptr(key)
        .map(|value| unsafe { value.read_volatile() })
}
