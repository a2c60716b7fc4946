//! What kind of failure an error is: it decides over exit codes and Varlink errors.

use std::io;

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was asked for makes no sense.
    Request,
    /// Another guard is in the way, or what guards need.
    Busy,
    /// A cgroup is not FROZEN, or cannot be frozen.
    NotFrozen,
    /// Tasks of the checkpoint are elsewhere, or are being traced.
    Stray,
    /// Somebody disturbed a guard that was being set up.
    Disturbed,
    /// There is no such guard.
    NotGuarded,
    /// Somebody has ended the guard.
    Gone,
    /// The kernel cannot do it, or not as far as is required.
    Unsupported,
    /// The caller may not do it.
    Permission,
    /// Something else.
    Internal,
}

impl Kind {
    /// The exit code of the command line. Scripts go by it: it never changes.
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
