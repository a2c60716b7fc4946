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

pub mod control;
mod decision;
mod fields;
pub mod kfuncs;
mod log;
mod naming;
mod record;

pub use decision::{
    Action, Actor, Object, PROTECTED_FILES, Place, ProtectedFile, Protection, Stage,
    acts_downwards, moves_one_thread, name_words, protection_of, protects_from,
};
pub use fields::{KernelOffsets, NO_FREEZER, WritingCalls};
pub use log::LogLine;
pub use naming::{FileName, NoSuchName};
pub use record::{
    Act, BY_INTERRUPT, EventKind, Intruder, IntruderKey, KERNEL_SIGNAL, RawEvent, Unguarded,
};

/// Names a guard. Never used twice, so that a stale id can do no harm.
pub type GuardId = u64;

/// `struct task_struct *` as a number: names a thread for as long as it lives. (A type of its own,
/// so that it never stands where a [`GuardId`] is meant.)
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TaskPointer(pub u64);

impl TaskPointer {
    /// No thread.
    pub const NONE: Self = Self(0);
}

/// The identity of a cgroup. Unlike a path it cannot be renamed, bind mounted
/// or looked at from another cgroup namespace, and it is not used again.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
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

/// One of the guards below an ancestor.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AncestorKey {
    /// The ancestor of a target.
    pub cgroup: CgroupKey,
    /// The guard; or [`AncestorKey::ANY`].
    pub guard: GuardId,
}

impl AncestorKey {
    /// Stands for the guard that was marked last. Without this key no guard is below the
    /// cgroup.
    pub const ANY: GuardId = GuardId::MAX;

    /// The key of this guard below this ancestor.
    #[inline(always)]
    pub const fn new(cgroup: CgroupKey, guard: GuardId) -> Self {
        Self { cgroup, guard }
    }
}

/// A guard. Its entry in the map is its life: without it every mark, member and
/// event that names it means nothing.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GuardEntry {
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
    /// How far each [`Protection`] goes: a [`Level`], or 0 for none.
    pub levels: [u32; Protection::COUNT],
    /// The calls that tripwires had missed when it was begun, or
    /// [`GuardEntry::UNKNOWN`].
    pub missed_before: u64,
    /// The thread that executed a checkpointer, if the kernel side made this entry
    /// by itself; [`TaskPointer::NONE`] for a guard that somebody asked for.
    pub leader: TaskPointer,
    /// [`GuardEntry::ENDS_WITH_LEADER`] and the others.
    pub flags: u64,
    /// When it ended, `CLOCK_BOOTTIME`, ns; 0 before. The program that finds 0 when it
    /// sets this ends the guard. The entry stays while the guard has members left.
    pub ended_ns: u64,
    /// The first target: when there is a `leader`, the first cgroup whose freezer
    /// the holder wrote, and zeros before: then the holder is a mere candidate.
    pub target: CgroupKey,
    /// With [`GuardEntry::BY_USER`]: the owner's uid, in the initial user namespace.
    pub owner_uid: u64,
    /// With [`GuardEntry::BY_USER`]: the owner's `struct user_namespace *` as a number, or 0
    /// while it is unknown.
    pub owner_ns: u64,
}

/// How far a protection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is refused. What is done is noticed.
    Detect = 1,
    /// It is refused by programs that a preemptible kernel sometimes leaves out.
    /// What they let through is noticed.
    BestEffort = 2,
    /// It is refused. What was under way is noticed.
    Enforce = 3,
}

impl Level {
    /// From the weakest to the strongest.
    pub const ALL: [Self; 3] = [Self::Detect, Self::BestEffort, Self::Enforce];

    /// The name of what may be none.
    pub const fn name_of(level: Option<Self>) -> &'static str {
        match level {
            Some(level) => level.name(),
            None => "missing",
        }
    }

    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::BestEffort => "best-effort",
            Self::Enforce => "enforce",
        }
    }
}

/// How much the kernel side tells of why it does what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum LogLevel {
    /// Nothing.
    #[default]
    Off = 0,
    /// Faults.
    Error = 1,
    /// Events that an administrator should look at, such as a checkpoint without a guard.
    Warn = 2,
    /// Operations that ended otherwise than asked for.
    Info = 3,
    /// Reasons why nothing was done.
    Debug = 4,
    /// Every refusal.
    Trace = 5,
}

impl LogLevel {
    /// Each at the index of its own number.
    pub const ALL: [Self; 6] = [
        Self::Off,
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// Its name on the command line and in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl GuardEntry {
    /// The guard ends when its `leader` does: that is in the target itself, and
    /// what it leaves behind there is no checkpointer.
    pub const ENDS_WITH_LEADER: u64 = 1;
    /// In place of a count that user space has still to look up.
    pub const UNKNOWN: u64 = u64::MAX;
    /// The kernel side has counted it among those that are held.
    pub const HELD: u64 = 2;
    /// Its targets were thawed, were frozen for it, and have to be thawed when it
    /// ends.
    pub const FROZEN_BY_US: u64 = 4;
    /// Its targets were FROZEN, and have to be so when it ends.
    pub const FOUND_FROZEN: u64 = 8;
    /// The guard's owner is a user, and not root of the host: it refuses nothing to tasks
    /// with authority over him. In the template of automatic guards: users may have some.
    pub const BY_USER: u64 = 32;
    /// The kernel side has counted it among the guards of users that are held.
    pub const HELD_BY_USER: u64 = 64;
    /// At its end the kernel did not call the programs, or some were not attached any more.
    pub const UNPROVEN: u64 = 128;
    /// It has ended, and `ENDED` had no room for its record: its entry is the record.
    pub const UNREAD: u64 = 256;
    /// After a violation its holder cannot complete the image. For automatic guards, in their
    /// template: nobody else makes their dumps fail.
    pub const FAILS_DUMP: u64 = 512;
    /// A guard with [`Self::FAILS_DUMP`] was violated, and the kernel side has counted it.
    pub const SPOILED: u64 = 1024;
    /// An automatic guard whose cgroup was FROZEN before its holder wrote its freezer.
    pub const CLAIMED_FROZEN: u64 = 2048;
    /// An automatic guard whose holder has seized tasks without a freezer. It protects each task
    /// that the holder traces, and the freezers of their cgroups. [`Self::target`] is the cgroup of
    /// the first of them, and no target: other tasks in there are free.
    pub const SEIZES: u64 = 4096;
    /// A checkpointer before this one, which was killed, has left the target frozen.
    pub const LEFT_FROZEN: u64 = 8192;
    /// An automatic guard whose holder restores tasks in its target.
    pub const RESTORES: u64 = 16_384;
    /// A candidate that somebody has moved to another cgroup.
    pub const MOVED: u64 = 32_768;

    /// Whether the guard has not ended.
    #[inline(always)]
    pub const fn is_in_force(&self) -> bool {
        self.ended_ns == 0
    }

    /// Whether the kernel side has begun the guard by itself, for a checkpointer.
    #[inline(always)]
    pub const fn is_automatic(&self) -> bool {
        self.leader.0 != TaskPointer::NONE.0
    }

    /// Whether a checkpointer runs that has not written any freezer yet: there is
    /// nothing that it guards.
    #[inline(always)]
    pub const fn is_candidate(&self) -> bool {
        self.is_automatic() && self.target.kernfs_id == 0
    }

    /// Whether this protection was not lifted.
    #[inline(always)]
    pub const fn protects(allowed: u64, protection: Protection) -> bool {
        allowed & protection.bit() == 0
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

/// What the iterator [`names::ENROL_ITER`] writes for a thread: it has become a
/// member, or could not.
pub const ENROLLED: u8 = 1;
/// See [`ENROLLED`].
pub const NO_ROOM: u8 = 2;

/// A process that is to become a holder.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Enrolling {
    /// Of this guard.
    pub guard: GuardId,
    /// Its pid in the initial pid namespace.
    pub pid: u64,
}

/// The number of guards that can be held at once.
pub const MAX_GUARDS: u32 = 10_000;
/// The number of root's checkpointers that can run without having frozen anything.
pub const MAX_CANDIDATES: u32 = 512;
/// The same for those of all users together.
pub const MAX_CANDIDATES_BY_USERS: u32 = 128;
/// The number of ended guards that wait for somebody to read what became of them.
pub const MAX_ENDED: u32 = 1024;
/// The number of threads that all holders together can have. A fork beyond it
/// fails with EAGAIN: the child would otherwise be an outsider.
pub const MAX_MEMBERS: u32 = 65_536;
/// The number of intruders that are told apart; others are counted only.
pub const MAX_INTRUDERS: u32 = 4096;
/// How many can follow the events at the same time.
pub const MAX_READERS: u32 = 16;
/// The size of each reader's ring buffer, bytes.
pub const RING_BYTES: u32 = 256 * 1024;
/// The number of guards of users that can be held at once, and of threads that the holder of
/// each can have: half of [`MAX_MEMBERS`] together.
pub const MAX_GUARDS_BY_USERS: u32 = 256;
/// See [`MAX_GUARDS_BY_USERS`].
pub const MAX_MEMBERS_BY_USER: u32 = 128;
/// The number of threads that the holder of another guard can have: an eighth of [`MAX_MEMBERS`].
pub const MAX_MEMBERS_BY_GUARD: u32 = MAX_MEMBERS / 8;
/// The deepest level at which a user can guard a cgroup, and the number of directories that a guard over
/// the socket covers: its ancestors take room in a map.
pub const MAX_DEPTH_BY_USER: u32 = 64;
/// How many names the program of a checkpointer can have.
pub const MAX_CHECKPOINTERS: u32 = 16;
/// How many levels below a target something is still recognised. While any guard exists,
/// actions in deeper cgroups are refused to everybody but root of the host: the guard may
/// cover them.
pub const MAX_DEPTH: u32 = 1024;

/// The names of maps and programs, which are the names of their pins too. The
/// programs on hooks are named in user space, in one table with their hooks.
pub mod names {
    /// [`GuardId`](super::GuardId) → [`GuardEntry`](super::GuardEntry).
    pub const GUARDS: &str = "GUARDS";
    /// [`CgroupKey`](super::CgroupKey) of a target → [`GuardId`](super::GuardId).
    pub const TARGETS: &str = "TARGETS";
    /// [`AncestorKey`](super::AncestorKey) → [`GuardId`](super::GuardId).
    pub const ANCESTORS: &str = "ANCESTORS";
    /// [`TaskPointer`](super::TaskPointer) of a holder's thread → [`GuardId`](super::GuardId).
    pub const MEMBERS: &str = "MEMBERS";
    /// Who was refused: [`IntruderKey`](super::IntruderKey) → [`Intruder`](super::Intruder).
    pub const INTRUDERS: &str = "INTRUDERS";
    /// Who got through: [`IntruderKey`](super::IntruderKey) → [`Intruder`](super::Intruder).
    pub const VIOLATORS: &str = "VIOLATORS";
    /// The entry of a guard that has ended, until somebody has read what became
    /// of it: [`GuardId`](super::GuardId) → [`GuardEntry`](super::GuardEntry).
    pub const ENDED: &str = "ENDED";
    /// [`AUTOMATIC`](super::AUTOMATIC) → the [`GuardEntry`](super::GuardEntry) that every
    /// candidate begins with; no `members`: there shall be none.
    /// [`ASKED_FOR`](super::ASKED_FOR) → what the next guard begins with.
    pub const TEMPLATES: &str = "TEMPLATES";
    /// The [`FileName`](super::FileName) of a program that is a checkpointer → 1.
    pub const CHECKPOINTERS: &str = "CHECKPOINTERS";
    /// 0 → [`Enrolling`](super::Enrolling).
    pub const ENROLLING: &str = "ENROLLING";
    /// A reader's number → the ring buffer of its [`RawEvent`](super::RawEvent)s.
    pub const READERS: &str = "READERS";
    /// A reader's number → the events that did not fit into its ring buffer.
    pub const LOST: &str = "LOST";
    /// 0 → a bit for each number that a reader may have.
    pub const READING: &str = "READING";
    /// The maps of those who follow the events.
    pub const OF_READERS: [&str; 3] = [READERS, LOST, READING];
    /// The read-only global [`KernelOffsets`](super::KernelOffsets).
    pub const OFFSETS: &str = "OFFSETS";
    /// The read-only global `freezer_cgrp_id`, or [`NO_FREEZER`](super::NO_FREEZER).
    pub const FREEZER: &str = "FREEZER";
    /// The read-only global that is 1 if the kernel's functions for uprobes take a
    /// `struct vm_area_struct *` (since Linux 6.16), 0 if they take a `struct mm_struct *`.
    pub const PROBES_BY_VMA: &str = "PROBES_BY_VMA";
    /// The read-only global [`WritingCalls`](super::WritingCalls).
    pub const WRITING_CALLS: &str = "WRITING_CALLS";
    /// The ring buffer of the kernel side's log lines, as `aya-log-ebpf` calls it.
    pub const LOGS: &str = "AYA_LOGS";
    /// The read-only global [`LogLevel`](super::LogLevel), as `aya-log-ebpf` calls it.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
    /// The program that user space runs to change a guard from inside.
    pub const CONTROL: &str = "control";
    /// The iterator over all [`Member`](super::Member)s.
    pub const MEMBERS_ITER: &str = "members";
    /// The iterator that enrols what [`ENROLLING`] says; for each thread it writes
    /// [`ENROLLED`](super::ENROLLED) or [`NO_ROOM`](super::NO_ROOM).
    pub const ENROL_ITER: &str = "enrol";
}

/// See [`names::TEMPLATES`].
pub const AUTOMATIC: u32 = 0;
/// See [`names::TEMPLATES`].
pub const ASKED_FOR: u32 = 1;

const _: () = {
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<AncestorKey>() == 24);
    assert!(size_of::<GuardEntry>() == 8 * (12 + 3 * Protection::COUNT) + 4 * Protection::COUNT);
    assert!(size_of::<Enrolling>() == 16);
    assert!(size_of::<FileName>() == 32);
    assert!(size_of::<IntruderKey>() == 24);
    assert!(size_of::<Intruder>() == 64);
    assert!(size_of::<RawEvent>() == 88);
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
        super::TaskPointer,
        super::CgroupKey,
        super::AncestorKey,
        super::GuardEntry,
        super::IntruderKey,
        super::Intruder,
        super::RawEvent,
        super::Member,
        super::Enrolling,
        super::FileName
    );
}
