//! The lines of the BPF programs' log: they give the reasons for their decisions.
//!
//! They write a line as its number and four more: so one small function serves all lines, and
//! no program carries the text of any. User space has the words.

use crate::LogLevel;

/// A line; `[a, b, c, d]` are its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLine {
    /// Process `a` executes a `criu` that uid `b` owns: that is no checkpointer.
    WrongOwner = 0,
    /// Process `a` executes a `criu` that others than root may write; `b`: its mode.
    WrongMode = 1,
    /// Process `a` executes a `criu` on a mount with nosuid, or of a user.
    WrongMount = 2,
    /// Process `a` executes `criu` as uid `b`, without a capability to dump others.
    WrongCredentials = 3,
    /// Guard `a` does not take the cgroup `b:c`: another guard is in its way.
    ClaimIsBusy = 4,
    /// Guard `a` does not take the cgroup `b:c`: there is no room.
    ClaimIsFull = 5,
    /// A write of process `a` to the cgroup `b:c` is refused: it lies too deep.
    TooDeep = 6,
    /// A write of process `a` to the cgroup `b:c` is refused: its text cannot be read.
    UnreadText = 7,
    /// A fork of process `b` fails: the holder of guard `a` has too many threads.
    NoRoom = 8,
    /// Guard `a` does not enter CHECKPOINTING: disturbances of protection `b` have gone from
    /// `c` to `d`.
    Disturbed = 9,
    /// Guard `a` refuses process `b` something about the cgroup `c:d`; the hierarchy is the
    /// lower half of `c`, the [`Act`](crate::Act) the upper.
    Refused = 10,
}

impl LogLine {
    /// Each at the index of its own number.
    pub const ALL: [Self; 11] = [
        Self::WrongOwner,
        Self::WrongMode,
        Self::WrongMount,
        Self::WrongCredentials,
        Self::ClaimIsBusy,
        Self::ClaimIsFull,
        Self::TooDeep,
        Self::UnreadText,
        Self::NoRoom,
        Self::Disturbed,
        Self::Refused,
    ];

    /// From which level on it is written.
    #[inline(always)]
    pub const fn level(self) -> LogLevel {
        match self {
            Self::ClaimIsBusy | Self::ClaimIsFull | Self::TooDeep | Self::NoRoom => LogLevel::Warn,
            Self::UnreadText | Self::Disturbed => LogLevel::Info,
            Self::WrongOwner | Self::WrongMode | Self::WrongMount | Self::WrongCredentials => {
                LogLevel::Debug
            }
            Self::Refused => LogLevel::Trace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_as_listed() {
        for (number, line) in LogLine::ALL.into_iter().enumerate() {
            assert_eq!(line as usize, number);
            assert_ne!(line.level(), LogLevel::Off);
        }
    }
}
