//! What is kept of a refusal or a violation: who did what, and the event.

use crate::{CgroupKey, GuardId, Protection, protection_of};

/// What somebody did to a guarded cgroup, or tried to. What a `detail` says
/// depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A write to a protected file; `detail`: its place in [`PROTECTED_FILES`](crate::PROTECTED_FILES).
    Write = 0,
    /// The cgroup was frozen.
    Freeze = 1,
    /// The cgroup was thawed.
    Thaw = 2,
    /// A task came into the cgroup, by migration or by `CLONE_INTO_CGROUP`.
    Enter = 3,
    /// A task left it.
    Leave = 4,
    /// A task was moved from one place to another inside, or in the other hierarchy.
    Move = 5,
    /// A signal to a task; `detail`: its number, with [`KERNEL_SIGNAL`] and [`BY_INTERRUPT`].
    Signal = 6,
    /// `ptrace` of a task, or what goes by the same permission:
    /// `process_vm_readv`, `/proc/PID/mem`, `pidfd_getfd`.
    Trace = 7,
    /// The memory of a task was written.
    WriteMemory = 8,
    /// The kernel has permitted what [`Act::Trace`] means.
    Permit = 9,
    /// The dirty bits of a task's pages were cleared: an incremental dump would leave those pages out.
    ClearDirty = 10,
    /// A checkpointer has frozen a cgroup, and has seized a task that is not in it.
    Stray = 11,
}

/// Added to the number of a signal that the kernel sends by itself, for instance when memory
/// runs out. (`cgroup.kill` sends in the name of its writer.)
pub const KERNEL_SIGNAL: u32 = 1 << 8;

/// Added to a [`KERNEL_SIGNAL`] that no process has caused, such as that of a timer.
pub const BY_INTERRUPT: u32 = 1 << 9;

impl Act {
    /// Each at the index of its own number.
    pub const ALL: [Self; 12] = [
        Self::Write,
        Self::Freeze,
        Self::Thaw,
        Self::Enter,
        Self::Leave,
        Self::Move,
        Self::Signal,
        Self::Trace,
        Self::WriteMemory,
        Self::Permit,
        Self::ClearDirty,
        Self::Stray,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Enter => "enter",
            Self::Leave => "leave",
            Self::Move => "move",
            Self::Signal => "signal",
            Self::Trace => "trace",
            Self::WriteMemory => "write memory",
            Self::Permit => "permit",
            Self::ClearDirty => "clear dirty bits",
            Self::Stray => "stray",
        }
    }

    /// The protection it runs into.
    #[inline(always)]
    pub const fn protection(self, detail: u32) -> Protection {
        match self {
            Self::Write => protection_of(detail),
            Self::Freeze | Self::Thaw | Self::Stray => Protection::Freeze,
            Self::Enter | Self::Leave | Self::Move => Protection::Migrate,
            Self::Signal => Protection::Kill,
            Self::Trace | Self::WriteMemory | Self::Permit | Self::ClearDirty => Protection::Ptrace,
        }
    }
}

/// Somebody who did one thing, once or many times.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntruderKey {
    /// The guard it was done to.
    pub guard: GuardId,
    /// The process (thread group), in the initial pid namespace.
    pub pid: u32,
    /// The [`Act`].
    pub act: u32,
    /// More of it.
    pub detail: u32,
    /// Whether the guard was CHECKPOINTING: 1, else 0.
    pub checkpointing: u32,
}

/// How often, when, and who it was.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intruder {
    /// How often.
    pub count: u64,
    /// The first time, `CLOCK_BOOTTIME`, ns.
    pub first_ns: u64,
    /// The last time, `CLOCK_BOOTTIME`, ns.
    pub last_ns: u64,
    /// The cgroup of the first time.
    pub cgroup: CgroupKey,
    /// The process it was done to the first time; 0 when it was the cgroup.
    pub victim: u32,
    /// The real user of the first time.
    pub uid: u32,
    /// The name of the thread that did it first, NUL-padded.
    pub comm: [u8; 16],
}

/// The kind of a [`RawEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Something was refused.
    Denial = 0,
    /// Something was done to a target by somebody else than the holder.
    Disturbance = 1,
    /// A cgroup became a target.
    Begun = 2,
    /// The guard entered CHECKPOINTING.
    Checkpointing = 3,
    /// The guard ended.
    Ended = 4,
    /// A checkpointer wrote a freezer, and no automatic guard could be had;
    /// `detail`: an [`Unguarded`].
    Unguarded = 5,
    /// A process has executed a checkpointer, and freezes nothing yet.
    Candidate = 6,
}

/// Why a checkpoint has no automatic guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unguarded {
    /// Another guard holds the cgroup, one above it or one below it.
    Busy = 0,
    /// A map is full.
    Full = 1,
    /// Its file could be anybody's: see the BPF side's `automatic.rs`.
    Untrusted = 2,
}

impl Unguarded {
    /// The name of the reason with this number, in metrics.
    pub const fn name_of(number: u32) -> &'static str {
        const BUSY: u32 = Unguarded::Busy as u32;
        const UNTRUSTED: u32 = Unguarded::Untrusted as u32;
        match number {
            BUSY => "busy",
            UNTRUSTED => "untrusted",
            _ => "full",
        }
    }
}

impl RawEvent {
    /// Returns the key under which its actor is recorded.
    #[inline(always)]
    pub const fn key(&self) -> IntruderKey {
        IntruderKey {
            guard: self.guard,
            pid: self.pid,
            act: self.act,
            detail: self.detail,
            checkpointing: self.checkpointing,
        }
    }

    /// Returns the record of its actor after so many accesses, of which this is the first.
    #[inline(always)]
    pub const fn intruder(&self, count: u64) -> Intruder {
        Intruder {
            count,
            first_ns: self.time_ns,
            last_ns: self.time_ns,
            cgroup: self.cgroup,
            victim: self.victim,
            uid: self.uid,
            comm: self.comm,
        }
    }
}

impl EventKind {
    /// Each at the index of its own number.
    pub const ALL: [Self; 7] = [
        Self::Denial,
        Self::Disturbance,
        Self::Begun,
        Self::Checkpointing,
        Self::Ended,
        Self::Unguarded,
        Self::Candidate,
    ];
}

/// Goes through the ring buffers. A hint: the maps are the truth.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawEvent {
    /// When, `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// The guard.
    pub guard: GuardId,
    /// The cgroup, or zeros.
    pub cgroup: CgroupKey,
    /// The [`EventKind`].
    pub kind: u32,
    /// The [`Act`] of a denial or disturbance.
    pub act: u32,
    /// The [`Protection`] it ran into.
    pub protection: u32,
    /// More of the act. When a guard has begun: 1 if a user owns it, else 0.
    pub detail: u32,
    /// The process it was done to; 0 when it was the cgroup. When a guard of a user has
    /// begun: its owner's uid.
    pub victim: u32,
    /// The process (thread group) that did it.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Its real user.
    pub uid: u32,
    /// Whether the guard was CHECKPOINTING: 1, else 0.
    pub checkpointing: u32,
    /// Zero.
    pub reserved: u32,
    /// The name of the thread, NUL-padded.
    pub comm: [u8; 16],
}

#[cfg(feature = "user")]
impl RawEvent {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PROTECTED_FILES;

    #[test]
    fn acts_and_kinds_are_numbered_as_listed() {
        for (number, act) in Act::ALL.into_iter().enumerate() {
            assert_eq!(act as usize, number);
        }
        for (number, kind) in EventKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }

    #[test]
    fn a_write_runs_into_the_protection_of_its_file() {
        for (number, file) in PROTECTED_FILES.iter().enumerate() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            assert_eq!(Act::Write.protection(number), file.protection);
        }
    }
}
