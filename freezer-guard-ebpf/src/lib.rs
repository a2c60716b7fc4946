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

pub use decision::{PROTECTED_FILES, Place, ProtectedFile, Protection, denies, name_words};
pub use fields::KernelOffsets;

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
    /// Refused writes, by [`Protection`]. Counted without loss.
    pub denials: [u64; Protection::COUNT],
    /// Events that did not fit into the ring buffer.
    pub lost_events: u64,
}

/// Somebody whose writes a guard refused.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntruderKey {
    /// The guard that refused them.
    pub guard: GuardId,
    /// The process (thread group), in the initial pid namespace.
    pub pid: u32,
    /// The [`Protection`] it ran into.
    pub protection: u32,
}

/// What a guard refused one intruder.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intruder {
    /// How many writes.
    pub count: u64,
    /// The name of the thread that wrote first, NUL-padded.
    pub comm: [u8; 16],
}

/// A refusal, as it goes through the ring buffer. A hint: counters are the truth.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// When, `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// The guard that refused.
    pub guard: GuardId,
    /// The cgroup whose file was written.
    pub cgroup: CgroupKey,
    /// The process (thread group) that wrote.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Its real user.
    pub uid: u32,
    /// The place of the file in [`PROTECTED_FILES`].
    pub file: u32,
    /// The name of the thread, NUL-padded.
    pub comm: [u8; 16],
}

#[cfg(feature = "user")]
impl Denial {
    /// Takes one out of the ring buffer's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: as long as the struct, which is `Pod`; the read does not need
        // an alignment.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
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
/// The size of the ring buffer, bytes.
pub const RING_BYTES: u32 = 256 * 1024;
/// How deep below a target a write is still recognised. Deeper ones are refused
/// while any guard exists: not knowing must not let anything through.
pub const MAX_DEPTH: u32 = 64;

/// What the program `control` does for the process that runs it.
pub mod control {
    /// Make the calling thread the first member of the guard.
    pub const ENROL: u64 = 1;
    /// The guard enters CHECKPOINTING.
    pub const CHECKPOINTING: u64 = 2;
    /// `control` did it.
    pub const DONE: u32 = 0;
    /// There is no such guard (any more).
    pub const NO_GUARD: u32 = 1;
    /// The caller belongs to the holder of another guard.
    pub const OTHER_GUARD: u32 = 2;
    /// A map is full.
    pub const FULL: u32 = 3;
}

/// The names of maps and programs, which are the names of their pins too.
pub mod names {
    /// [`GuardId`](super::GuardId) → [`Guard`](super::Guard).
    pub const GUARDS: &str = "GUARDS";
    /// [`CgroupKey`](super::CgroupKey) of a target → [`GuardId`](super::GuardId).
    pub const TARGETS: &str = "TARGETS";
    /// [`AncestorKey`](super::AncestorKey) → [`GuardId`](super::GuardId).
    pub const ANCESTORS: &str = "ANCESTORS";
    /// [`TaskPointer`](super::TaskPointer) → [`GuardId`](super::GuardId).
    pub const MEMBERS: &str = "MEMBERS";
    /// [`IntruderKey`](super::IntruderKey) → [`Intruder`](super::Intruder).
    pub const INTRUDERS: &str = "INTRUDERS";
    /// The ring buffer of [`Denial`](super::Denial)s.
    pub const EVENTS: &str = "EVENTS";
    /// The read-only global [`KernelOffsets`](super::KernelOffsets).
    pub const OFFSETS: &str = "OFFSETS";
    /// The program that user space runs to change a guard from inside.
    pub const CONTROL: &str = "control";
    /// The iterator over all [`Member`](super::Member)s.
    pub const MEMBERS_ITER: &str = "members";
    /// The LSM programs; each is named after its hook.
    pub const LSM: [&str; 3] = ["file_permission", "task_alloc", "task_free"];
    /// The program on the tracepoint of the same name.
    pub const EXIT: &str = "sched_process_exit";
}

const _: () = {
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<AncestorKey>() == 24);
    assert!(size_of::<Guard>() == 8 * (4 + Protection::COUNT));
    assert!(size_of::<IntruderKey>() == 16);
    assert!(size_of::<Intruder>() == 24);
    assert!(size_of::<Denial>() == 64);
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
        super::Denial,
        super::Member,
        super::KernelOffsets
    );
}
