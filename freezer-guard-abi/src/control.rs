//! The operations of the program [`control`](crate::names::CONTROL), which acts on the thread
//! that runs it.
//!
//! Its arguments are words: an [`Operation`], the guard's id, and [`MORE`] further ones.

use crate::Protection;

/// The further arguments: as many as the longest operation takes.
pub const MORE: usize = Protection::COUNT;
/// The words that are passed. (`BPF_PROG_TEST_RUN` takes 12 at most.)
pub const WORDS: usize = 2 + MORE;

/// An operation, in the order of a guard's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Begins the guard with what is in [`TEMPLATES`](crate::names::TEMPLATES) for it, and
    /// the calling thread as its first member.
    Begin = 0,
    /// Makes the calling thread a member of the guard.
    Enrol = 1,
    /// Tells the readers that a cgroup is a target now. Further arguments: the hierarchy id
    /// and the kernfs id of the target.
    Marked = 2,
    /// Sets a flag of the entry. A further argument:
    /// [`GuardEntry::FROZEN_BY_US`](crate::GuardEntry::FROZEN_BY_US),
    /// [`GuardEntry::FOUND_FROZEN`](crate::GuardEntry::FOUND_FROZEN) or
    /// [`GuardEntry::UNPROVEN`](crate::GuardEntry::UNPROVEN).
    SetFlag = 3,
    /// The guard enters CHECKPOINTING if nothing has disturbed the targets since they were
    /// found to be in order. Further arguments: the guard's `disturbances` before they were
    /// looked at.
    Checkpointing = 4,
    /// Sets how far an automatic guard goes, now that everything is attached. Further
    /// arguments: a [`Level`](crate::Level) for each [`Protection`], a byte each, the first
    /// the lowest; and the calls that tripwires had missed when it was begun.
    Armed = 5,
    /// Takes the calling thread out of its holder.
    Leave = 6,
    /// Ends the guard. Further arguments: 1 if its targets are as they were found; 1 if marks
    /// of it may be left.
    End = 7,
    /// Answers how many guards have ended whose marks may be left. The guard's id is not
    /// looked at.
    Stale = 8,
    /// Their marks are gone. In place of the guard's id: how many they were.
    Swept = 9,
    /// Names the thread that proves that the programs are called: see `audit.rs`. In place of
    /// the guard's id: its number in the initial pid namespace, or 0.
    Prove = 10,
    /// Answers how many candidates there are. The guard's id is not looked at.
    Candidates = 11,
    /// Removes a mark if it names this guard, which has ended or is being ended. Further arguments: the
    /// hierarchy id and the kernfs id of the cgroup; 0 for the mark on a target, 1 for
    /// [`AncestorKey::ANY`](crate::AncestorKey::ANY) above one.
    Unmark = 12,
}

impl Operation {
    /// Each at the index of its own number.
    pub const ALL: [Self; 13] = [
        Self::Begin,
        Self::Enrol,
        Self::Marked,
        Self::SetFlag,
        Self::Checkpointing,
        Self::Armed,
        Self::Leave,
        Self::End,
        Self::Stale,
        Self::Swept,
        Self::Prove,
        Self::Candidates,
        Self::Unmark,
    ];

    /// The operation with this number.
    #[inline(always)]
    pub const fn numbered(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Begin,
            1 => Self::Enrol,
            2 => Self::Marked,
            3 => Self::SetFlag,
            4 => Self::Checkpointing,
            5 => Self::Armed,
            6 => Self::Leave,
            7 => Self::End,
            8 => Self::Stale,
            9 => Self::Swept,
            10 => Self::Prove,
            11 => Self::Candidates,
            12 => Self::Unmark,
            _ => return None,
        })
    }
}

/// The answer to every operation but [`Operation::Stale`] and [`Operation::Candidates`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done = 0,
    /// There is no such guard (any more).
    NoGuard = 1,
    /// The caller belongs to the holder of another guard.
    OtherGuard = 2,
    /// A map is full.
    Full = 3,
    /// Somebody has disturbed the targets meanwhile.
    Disturbed = 4,
}

impl Answer {
    /// Each at the index of its own number.
    pub const ALL: [Self; 5] = [
        Self::Done,
        Self::NoGuard,
        Self::OtherGuard,
        Self::Full,
        Self::Disturbed,
    ];

    /// The answer with this number.
    pub const fn numbered(number: u32) -> Option<Self> {
        if (number as usize) < Self::ALL.len() {
            Some(Self::ALL[number as usize])
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_listed() {
        for (number, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, number);
            assert_eq!(Operation::numbered(number as u64), Some(operation));
        }
        assert_eq!(Operation::numbered(Operation::ALL.len() as u64), None);
    }

    #[test]
    fn answers_are_numbered_as_listed() {
        for (number, answer) in Answer::ALL.into_iter().enumerate() {
            assert_eq!(Answer::numbered(number as u32), Some(answer));
            assert_eq!(answer as usize, number);
        }
        assert_eq!(Answer::numbered(Answer::ALL.len() as u32), None);
    }
}
