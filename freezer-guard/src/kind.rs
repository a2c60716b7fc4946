//! The kinds of errors, which decide over exit codes and Varlink errors.

use std::io;

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An argument is wrong.
    Request,
    /// Another guard is in the way, or a resource of guards is used up.
    Busy,
    /// A cgroup is not FROZEN, or does not freeze.
    NotFrozen,
    /// Tasks of the checkpoint are elsewhere, or another process traces them.
    Stray,
    /// Another process disturbed a guard during its setup.
    Disturbed,
    /// There is no such guard.
    NotGuarded,
    /// A process has ended the guard by force.
    Gone,
    /// The kernel does not support it, or not at the required level.
    Unsupported,
    /// The caller has no permission.
    Permission,
    /// Another cause.
    Internal,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Request,
        Self::Busy,
        Self::NotFrozen,
        Self::Stray,
        Self::Disturbed,
        Self::NotGuarded,
        Self::Gone,
        Self::Unsupported,
        Self::Permission,
        Self::Internal,
    ];

    /// Returns the exit code of the command line. Scripts depend on it: it never changes.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Request => 64,
            Self::Unsupported => 69,
            Self::Internal => 70,
            Self::Gone => 73,
            Self::Busy | Self::NotFrozen | Self::Stray | Self::Disturbed | Self::NotGuarded => 75,
            Self::Permission => 77,
        }
    }

    /// Of an error on a path that was asked for.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Request,
            io::ErrorKind::PermissionDenied => Self::Permission,
            io::ErrorKind::ResourceBusy => Self::Busy,
            _ => Self::Internal,
        }
    }
}
