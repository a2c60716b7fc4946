//! Why the service, or a call of it, fails.

use std::io;

use freezer_guard::{Kind, cgroup, guard, kernel};
use tokio::task::JoinError;

use super::{config, reply};

/// The error of every function of the service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// About a guard, a cgroup or BPF.
    #[error(transparent)]
    Guard(#[from] guard::Error),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The action of the service.
        doing: String,
        /// Why that failed.
        source: io::Error,
    },
    /// A thread of the service has panicked.
    #[error("a thread of the service has ended")]
    Thread(#[from] JoinError),
}

/// The result of every function of the service.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl From<cgroup::Error> for Error {
    fn from(error: cgroup::Error) -> Self {
        guard::Error::from(error).into()
    }
}

impl From<kernel::Error> for Error {
    fn from(error: kernel::Error) -> Self {
        guard::Error::from(error).into()
    }
}

impl Error {
    /// For `map_err`: an I/O error while the service was doing this.
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self + Send + 'static {
        let doing = doing.into();
        |source| Self::Io { doing, source }
    }

    /// Returns its kind: it decides over the exit code and the answer to a client.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Guard(error) => error.kind(),
            Self::Config(_) => Kind::Request,
            Self::Io { .. } | Self::Thread(_) => Kind::Internal,
        }
    }
}

impl From<Error> for reply::Error {
    fn from(error: Error) -> Self {
        let message = guard::chain(&error);
        let kind = match error {
            // Whatever is wrong with a cgroup: the client has named it.
            Error::Guard(guard::Error::Cgroup(_)) => Kind::Request,
            _ => error.kind(),
        };
        match kind {
            Kind::Request => Self::BadRequest { message },
            Kind::Busy => Self::Busy { message },
            Kind::NotFrozen => Self::NotFrozen { message },
            Kind::Stray => Self::Stray { message },
            Kind::Disturbed => Self::Disturbed { message },
            Kind::NotGuarded | Kind::Gone => Self::NotGuarded { message },
            // The service may not do it.
            Kind::Unsupported | Kind::Permission => Self::Unsupported { message },
            Kind::Internal => Self::Failed { message },
        }
    }
}
