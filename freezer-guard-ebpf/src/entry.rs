//! A guard's entry in `GUARDS`: the one way to read it and to change it.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_boot_ns};
use freezer_guard_abi::{CgroupKey, GuardEntry, GuardId, Protection, TaskPointer};

use crate::{atomic, kernel::opaque, maps::GUARDS};

/// A guard's entry, in force when it was looked up.
///
/// Inside is a map value that the verifier has seen checked. It stays readable and writable
/// to the end of the program, also when somebody removes the entry meanwhile. Words that
/// several CPUs change are changed by atomic operations; each of the others has one writer,
/// named at its setter.
#[derive(Clone, Copy)]
pub(crate) struct Entry(*mut GuardEntry);

/// A field of the entry as a pointer. To be used in `unsafe`: see [`Entry`].
macro_rules! field {
    ($entry:expr, $($field:tt)+) => {
        &raw mut (*$entry.0).$($field)+
    };
}

impl Entry {
    /// The guard's entry, if it is in force.
    #[inline(always)]
    pub(crate) fn of(id: GuardId) -> Option<Self> {
        Self::of_any(id).filter(|entry| entry.guard().is_in_force())
    }

    /// The guard's entry, even if it has ended.
    #[inline(always)]
    pub(crate) fn of_any(id: GuardId) -> Option<Self> {
        GUARDS.get_ptr_mut(id).map(Self)
    }

    /// The entry that a callback for each element of `GUARDS` was given.
    #[inline(always)]
    pub(crate) fn at(entry: *mut GuardEntry) -> Self {
        Self(entry)
    }

    /// Makes an entry for a guard that has none. Whether there was room.
    #[inline(always)]
    pub(crate) fn make(id: GuardId, guard: &GuardEntry) -> bool {
        GUARDS.insert(id, guard, u64::from(BPF_NOEXIST)).is_ok()
    }

    /// The fields.
    #[inline(always)]
    pub(crate) fn guard(&self) -> &GuardEntry {
        // SAFETY: see `Entry`. The compiler may keep an older value of a word.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    pub(crate) fn flags(self) -> u64 {
        // SAFETY: see `Entry`.
        unsafe { atomic::read(field!(self, flags)) }
    }

    /// Sets flags and returns what they were.
    #[inline(always)]
    pub(crate) fn set_flags(self, bits: u64) -> u64 {
        // SAFETY: see `Entry`.
        unsafe { atomic::set_bits(field!(self, flags), bits) }
    }

    #[inline(always)]
    pub(crate) fn clear_flags(self, bits: u64) {
        // SAFETY: see `Entry`.
        unsafe { atomic::clear_bits(field!(self, flags), bits) }
    }

    /// The threads of the holder.
    #[inline(always)]
    pub(crate) fn members(self) -> u64 {
        // SAFETY: see `Entry`.
        unsafe { atomic::read(field!(self, members)) }
    }

    /// Counts one more.
    #[inline(always)]
    pub(crate) fn add_member(self) {
        // SAFETY: see `Entry`.
        unsafe { atomic::add(field!(self, members), 1) }
    }

    /// Counts one less.
    #[inline(always)]
    pub(crate) fn remove_member(self) {
        // SAFETY: see `Entry`.
        unsafe { atomic::add(field!(self, members), u64::MAX) }
    }

    /// Whether it has ended.
    #[inline(always)]
    pub(crate) fn has_ended(self) -> bool {
        // SAFETY: see `Entry`.
        unsafe { atomic::read(field!(self, ended_ns)) != 0 }
    }

    /// Sets the time of its end. Whether this is the first: the end is its caller's to do.
    #[inline(always)]
    pub(crate) fn end(self) -> bool {
        // SAFETY: see `Entry`; the helper has no preconditions.
        unsafe { atomic::swap(field!(self, ended_ns), bpf_ktime_get_boot_ns()) == 0 }
    }

    /// Counts what was refused, or what was done to a target.
    #[inline(always)]
    pub(crate) fn count(self, is_denial: bool, protection: u32) {
        let protection = opaque(protection) as usize % Protection::COUNT;
        // SAFETY: see `Entry`.
        unsafe {
            let counter = match is_denial {
                true => field!(self, denials[protection]),
                false => field!(self, disturbances[protection]),
            };
            atomic::add(counter, 1);
        }
    }

    /// How often something was done to the targets.
    #[inline(always)]
    pub(crate) fn disturbances(self, protection: usize) -> u64 {
        // SAFETY: see `Entry`.
        unsafe { atomic::read(field!(self, disturbances[protection])) }
    }

    /// Whether it is CHECKPOINTING.
    #[inline(always)]
    pub(crate) fn is_checkpointing(self) -> bool {
        // SAFETY: see `Entry`.
        unsafe { atomic::read(field!(self, checkpointing_ns)) != 0 }
    }

    /// Sets when it entered CHECKPOINTING, 0 for not yet, and returns what that was.
    #[inline(always)]
    pub(crate) fn set_checkpointing(self, time_ns: u64) -> u64 {
        // SAFETY: see `Entry`.
        unsafe { atomic::swap(field!(self, checkpointing_ns), time_ns) }
    }

    /// One writer: the holder's `control`, before it enters CHECKPOINTING.
    #[inline(always)]
    pub(crate) fn set_repaired(self, repaired: [u64; Protection::COUNT]) {
        // SAFETY: see `Entry`.
        unsafe { field!(self, repaired).write(repaired) }
    }

    /// One writer: the first claim of an automatic guard.
    #[inline(always)]
    pub(crate) fn set_begun(self, time_ns: u64, target: CgroupKey) {
        // SAFETY: see `Entry`.
        unsafe {
            field!(self, begun_ns).write(time_ns);
            field!(self, target).write(target);
        }
    }

    /// One writer: `control`, under the lock of user space. Of several calls the first says
    /// what tripwires had missed.
    #[inline(always)]
    pub(crate) fn arm(self, levels: u64, missed: u64) {
        for index in 0..Protection::COUNT {
            let level = (levels >> (8 * index)) as u32 & 0xff;
            // SAFETY: see `Entry`.
            unsafe { field!(self, levels[index]).write(level) }
        }
        if self.guard().missed_before == GuardEntry::UNKNOWN {
            // SAFETY: see `Entry`.
            unsafe { field!(self, missed_before).write(missed) }
        }
    }

    /// One writer: the iterator that enrols the holder, under the lock of user space.
    #[inline(always)]
    pub(crate) fn set_owner(self, uid: u64, user_ns: u64) {
        // SAFETY: see `Entry`.
        unsafe {
            field!(self, owner_uid).write(uid);
            field!(self, owner_ns).write(user_ns);
        }
    }

    /// The thread with which an automatic guard comes to its end, though others may be left;
    /// `None`: it ends with its last member.
    #[inline(always)]
    pub(crate) fn leader(self) -> Option<TaskPointer> {
        let guard = self.guard();
        let ends = guard.is_candidate() || self.flags() & GuardEntry::ENDS_WITH_LEADER != 0;
        ends.then_some(guard.leader)
    }
}
