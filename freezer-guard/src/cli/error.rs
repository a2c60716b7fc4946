//! Why a subcommand fails, and its exit code.

use std::{io, path::PathBuf};

use freezer_guard::{Kind, cgroup, criu, guard, kernel};
use nix::{errno::Errno, sys::signal::Signal};

use super::exit::{CANNOT_EXECUTE, Code, NOT_FOUND};
use crate::daemon::{self, reply, varlink::SOCKET};

/// Returned by every subcommand.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// About a guard, a cgroup or BPF.
    #[error(transparent)]
    Guard(#[from] guard::Error),
    /// About CRIU and its images.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// The service runs in this process, and fails.
    #[error(transparent)]
    Daemon(#[from] daemon::error::Error),
    /// The service answers that it failed.
    #[error(transparent)]
    Service(#[from] reply::Error),
    /// The service gives no answer.
    #[error("{doing}")]
    NoAnswer {
        /// The action of freezer-guard.
        doing: String,
        /// Why that failed.
        source: zlink::Error,
    },
    /// The service has to answer, and does not run.
    #[error(
        "the service does not run: nothing listens on {SOCKET}; see `systemctl status freezer-guard`"
    )]
    NoService,
    /// COMMAND cannot be executed.
    #[error("cannot execute {command}")]
    Command {
        /// Its first word.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// The options contradict each other.
    #[error(
        "--require {required} asks for more than --level {level} allows: leave one of them out"
    )]
    Contradiction {
        /// The weakest level that will do.
        required: &'static str,
        /// The strongest level that is wanted.
        level: &'static str,
    },
    /// The service does not support `--level`.
    #[error("the service does not support --level {0}: run freezer-guard as root")]
    ServiceLevel(&'static str),
    /// CRIU runs the scripts of the user before that of freezer-guard, and does not tell it that one
    /// has failed.
    #[error(
        "CRIU's --action-script and --config do not go with several trees, which have to succeed together: checkpoint them one by one, or leave the option out"
    )]
    ScriptOfSeveral,
    /// The user has named a process tree twice.
    #[error("{one} and {other} name the same process tree, that of {root}: name it once")]
    SameTree {
        /// The first name.
        one: String,
        /// The other one.
        other: String,
        /// Its root.
        root: String,
    },
    /// CRIU would dump a process for two trees.
    #[error(
        "{inner_root}, the root of {inner}, descends from {outer_root}, the root of {outer}, whose image holds all its descendants: leave {inner} out"
    )]
    TreeInTree {
        /// The name of the tree that is a part of the other one.
        inner: String,
        /// Its root.
        inner_root: String,
        /// The name of the whole tree.
        outer: String,
        /// Its root.
        outer_root: String,
    },
    /// The freezer of one tree would stop the other one.
    #[error(
        "{root}, the root of {inner}, is in the cgroup {} of {outer}, or below it, and each tree needs a cgroup of its own: move it to a cgroup elsewhere, or checkpoint the trees one after the other with --pid", cgroup.display()
    )]
    TreeInCgroup {
        /// The name of the tree in the cgroup of the other one.
        inner: String,
        /// Its root.
        root: String,
        /// The name of the other one.
        outer: String,
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// The limit of open files is too low.
    #[error("this process cannot open {0} more files: raise its limit (ulimit -n)")]
    FewDescriptors(usize),
    /// A file that the user has named cannot be written.
    #[error("write {}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The service remembers fewer guards.
    #[error("there is no --last {wanted}: ended guards that the service remembers: {known}")]
    NotRemembered {
        /// How many there are.
        known: usize,
        /// The one that was asked for.
        wanted: usize,
    },
    /// A signal has come.
    #[error("{0} interrupted freezer-guard before COMMAND started")]
    Interrupted(Signal),
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The action of freezer-guard.
        doing: String,
        /// Why that failed.
        source: io::Error,
    },
    /// A system call failed that has no object worth a name: output, signals, the runtime.
    #[error(transparent)]
    System(#[from] io::Error),
    /// Something that should not happen.
    #[error("{0}")]
    Unexpected(String),
}

/// The result of every subcommand.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

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

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::System(error.into())
    }
}

impl Error {
    /// For `map_err`: an I/O error while freezer-guard was doing this.
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |source| Self::Io { doing, source }
    }

    /// For `map_err`: no answer of the service.
    pub(super) fn no_answer(doing: impl Into<String>) -> impl FnOnce(zlink::Error) -> Self {
        let doing = doing.into();
        |source| Self::NoAnswer { doing, source }
    }

    /// Returns the exit code.
    pub(super) fn code(&self) -> Code {
        let kind = match self {
            Self::Guard(guard::Error::Kernel(kernel::Error::Interrupted(signal)))
            | Self::Interrupted(signal) => return Code(128 + *signal as u8),
            Self::Guard(error) => error.kind(),
            Self::Criu(error) => return of_criu(error),
            Self::Daemon(error) => error.kind(),
            Self::Service(error) => error.kind(),
            Self::Contradiction { .. }
            | Self::ServiceLevel(_)
            | Self::ScriptOfSeveral
            | Self::SameTree { .. }
            | Self::TreeInTree { .. }
            | Self::TreeInCgroup { .. }
            | Self::NotRemembered { .. } => Kind::Request,
            Self::Output { source, .. } => of_file(source),
            Self::FewDescriptors(_) => Kind::Unsupported,
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                return NOT_FOUND;
            }
            Self::Command { .. } => return CANNOT_EXECUTE,
            Self::NoAnswer { .. }
            | Self::NoService
            | Self::Io { .. }
            | Self::System(_)
            | Self::Unexpected(_) => Kind::Internal,
        };
        kind.into()
    }

    /// Returns whether this lasts only as long as guards of others.
    pub(super) fn ends_with_other_guards(&self) -> bool {
        use kernel::Error::{OtherLevel, OtherVersion};
        matches!(
            self,
            Self::Guard(
                guard::Error::Guarded { .. }
                    | guard::Error::Kernel(OtherLevel { .. } | OtherVersion)
            ) | Self::Service(reply::Error::Busy { .. })
        )
    }

    /// Returns the kernel's errors about programs, with the verifier's logs.
    pub(super) fn kernel_errors(&self) -> Vec<&kernel::Error> {
        match self {
            Self::Guard(error) => error.kernel_errors(),
            _ => Vec::new(),
        }
    }
}

fn of_criu(error: &criu::Error) -> Code {
    let kind = match error {
        criu::Error::NotFound(_) => return NOT_FOUND,
        criu::Error::Run { .. } => return CANNOT_EXECUTE,
        criu::Error::Rights { .. } => Kind::Permission,
        criu::Error::NoCriu { .. } | criu::Error::Check { .. } | criu::Error::NoTracking { .. } => {
            Kind::Unsupported
        }
        criu::Error::Io { source, .. } => of_file(source),
        _ => Kind::Request,
    };
    kind.into()
}

/// Of a file or directory that the user has named.
fn of_file(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidData
        | io::ErrorKind::UnexpectedEof => Kind::Request,
        io::ErrorKind::PermissionDenied => Kind::Permission,
        _ => Kind::Internal,
    }
}
