//! What the BPF programs and user space share: map keys and values, the table
//! of kernel fields, the list of protected files, and the decision itself.
//!
//! Everything that lies in a map is `repr(C)`, has no padding and is checked
//! for its size below. Integers that name a kind are `u32` and not enums: a
//! value read from a map may have been written by another version.

#![no_std]
#![cfg_attr(
    feature = "user",
    expect(
        unsafe_code,
        reason = "`Pod` is an unsafe trait; see the one place below"
    )
)]

mod decision;
mod fields;
mod record;

pub use decision::{
    Actor, PROTECTED_FILES, Place, ProtectedFile, Protection, denies, denies_task, name_words,
};
pub use fields::KernelOffsets;
pub use record::{Act, Event, EventKind, Intruder, IntruderKey, KERNEL_SIGNAL};

/// Names a guard. Never used twice, so that a stale id can do no harm.
pub type GuardId = u64;

/// `struct task_struct *` as a number: names a thread for as long as it lives.
pub type TaskPointer = u64;

/// The identity of a cgroup. Unlike a path it cannot be renamed, bind mounted
/// or looked at from another cgroup namespace, and it is not used again.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupKey {
    /// `cgroup_root.hierarchy_id`: 0 is v2; the first field of `/proc/PID/cgroup`.
    pub hierarchy_id: u32,
    /// Zero; a map compares keys byte by byte.
    pub reserved: u32,
    /// `kernfs_node.id`, the `st_ino` of the cgroup's directory on 64 bits.
    pub kernfs_id: u64,
}

impl CgroupKey {
    /// The key of the cgroup with this directory inode in this hierarchy.
    #[inline(always)]
    pub const fn new(hierarchy_id: u32, kernfs_id: u64) -> Self {
        Self {
            hierarchy_id,
            reserved: 0,
            kernfs_id,
        }
    }
}

/// One of the guards below an ancestor. The entries of an ancestor are numbered
/// from 0 without a gap: the first number that is missing ends the list.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AncestorKey {
    /// The ancestor of a target.
    pub cgroup: CgroupKey,
    /// Its place in the list, below [`MAX_GUARDS`].
    pub index: u64,
}

/// A guard. Its entry in the map is its life: without it every mark, member and
/// event that names it means nothing.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guard {
    /// Threads of the holder. The kernel side deletes the entry at zero.
    pub members: u64,
    /// When it was begun, `CLOCK_BOOTTIME`, ns.
    pub begun_ns: u64,
    /// When it entered CHECKPOINTING, `CLOCK_BOOTTIME`, ns; 0 before.
    pub checkpointing_ns: u64,
    /// The [`Protection`]s that were lifted, a bit each: what they would have
    /// refused is neither a denial nor a violation.
    pub allowed: u64,
    /// What was refused, by [`Protection`]. Counted without loss.
    pub denials: [u64; Protection::COUNT],
    /// What happened to the targets by the hand of others since it was begun,
    /// by [`Protection`]. Counted without loss.
    pub disturbances: [u64; Protection::COUNT],
    /// Those of `disturbances` that came before CHECKPOINTING and were mended.
    /// The rest are violations.
    pub repaired: [u64; Protection::COUNT],
}

impl Guard {
    /// Whether this protection was not lifted.
    #[inline(always)]
    pub const fn protects(allowed: u64, protection: Protection) -> bool {
        allowed & (1 << protection as u64) == 0
    }

    /// The disturbances that were not mended, by [`Protection`].
    pub fn violations(&self) -> [u64; Protection::COUNT] {
        let mut left = self.disturbances;
        for (left, repaired) in left.iter_mut().zip(self.repaired) {
            *left = left.saturating_sub(repaired);
        }
        left
    }
}

/// A thread of a holder, as the iterator `members` lists it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The guard it may write past.
    pub guard: GuardId,
    /// Its process (thread group), in the initial pid namespace.
    pub pid: u32,
    /// Its thread id.
    pub tid: u32,
}

/// The number of guards that can be held at once. The verifier walks a loop of
/// this length.
pub const MAX_GUARDS: u32 = 128;
/// The number of threads that all holders together can have. A fork beyond it
/// fails with EAGAIN: it would otherwise leave the holder unnoticed.
pub const MAX_MEMBERS: u32 = 65_536;
/// The number of intruders that are told apart; others are counted only.
pub const MAX_INTRUDERS: u32 = 4096;
/// How many can follow the events at the same time.
pub const MAX_READERS: u32 = 16;
/// The size of each reader's ring buffer, bytes.
pub const RING_BYTES: u32 = 256 * 1024;
/// How deep below a target something is still recognised. What is done deeper is
/// refused while any guard exists: not knowing must not let anything through.
/// The verifier walks loops of this length.
pub const MAX_DEPTH: u32 = 32;

/// What the program `control` does for the process that runs it. Its arguments
/// are the operation, the guard's id, and what is said at each operation.
pub mod control {
    /// Make the calling thread the first member of the guard.
    pub const ENROL: u64 = 1;
    /// Tell the readers that a cgroup is a target now. Further arguments: the
    /// hierarchy id and the kernfs id of the target.
    pub const MARKED: u64 = 2;
    /// The guard enters CHECKPOINTING if nothing has disturbed the targets
    /// since they were found to be in order. Further arguments: the guard's
    /// `disturbances` before they were looked at.
    pub const CHECKPOINTING: u64 = 3;
    /// End the guard.
    pub const END: u64 = 4;
    /// `control` did it.
    pub const DONE: u32 = 0;
    /// There is no such guard (any more).
    pub const NO_GUARD: u32 = 1;
    /// The caller belongs to the holder of another guard.
    pub const OTHER_GUARD: u32 = 2;
    /// A map is full.
    pub const FULL: u32 = 3;
    /// Somebody has disturbed the targets meanwhile.
    pub const DISTURBED: u32 = 4;
}

/// The names of maps and programs, which are the names of their pins too. The
/// programs on hooks are named in user space, in one table with their hooks.
pub mod names {
    /// [`GuardId`](super::GuardId) → [`Guard`](super::Guard).
    pub const GUARDS: &str = "GUARDS";
    /// [`CgroupKey`](super::CgroupKey) of a target → [`GuardId`](super::GuardId).
    pub const TARGETS: &str = "TARGETS";
    /// [`AncestorKey`](super::AncestorKey) → [`GuardId`](super::GuardId).
    pub const ANCESTORS: &str = "ANCESTORS";
    /// [`TaskPointer`](super::TaskPointer) → [`GuardId`](super::GuardId).
    pub const MEMBERS: &str = "MEMBERS";
    /// Who was refused: [`IntruderKey`](super::IntruderKey) → [`Intruder`](super::Intruder).
    pub const INTRUDERS: &str = "INTRUDERS";
    /// Who got through: [`IntruderKey`](super::IntruderKey) → [`Intruder`](super::Intruder).
    pub const VIOLATORS: &str = "VIOLATORS";
    /// A reader's number → the ring buffer of its [`Event`](super::Event)s.
    pub const READERS: &str = "READERS";
    /// A reader's number → the events that did not fit into its ring buffer.
    pub const LOST: &str = "LOST";
    /// The read-only global [`KernelOffsets`](super::KernelOffsets).
    pub const OFFSETS: &str = "OFFSETS";
    /// The read-only global `freezer_cgrp_id`, or [`NO_FREEZER`](super::NO_FREEZER).
    pub const FREEZER: &str = "FREEZER";
    /// The program that user space runs to change a guard from inside.
    pub const CONTROL: &str = "control";
    /// The iterator over all [`Member`](super::Member)s.
    pub const MEMBERS_ITER: &str = "members";
}

/// In place of `freezer_cgrp_id` on a kernel without the v1 freezer.
pub const NO_FREEZER: u32 = u32::MAX;

const _: () = {
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<AncestorKey>() == 24);
    assert!(size_of::<Guard>() == 8 * (4 + 3 * Protection::COUNT));
    assert!(size_of::<IntruderKey>() == 24);
    assert!(size_of::<Intruder>() == 64);
    assert!(size_of::<Event>() == 88);
    assert!(size_of::<Member>() == 16);
};

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($type:ty),+) => {
            // SAFETY: `repr(C)`, integers only, no padding (the sizes are
            // asserted above): every byte pattern is a value.
            $(unsafe impl aya::Pod for $type {})+
        };
    }
    pod!(
        super::CgroupKey,
        super::AncestorKey,
        super::Guard,
        super::IntruderKey,
        super::Intruder,
        super::Event,
        super::Member,
        super::KernelOffsets
    );
}
