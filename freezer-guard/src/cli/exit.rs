//! The exit codes of ours. They must not drift: scripts go by them.

use std::{io, process::ExitCode};

use freezer_guard::{bench, cgroup, criu, guard, kernel};

use super::client;
use crate::daemon::config;

/// An exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u8);

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.0)
    }
}

/// All went well.
pub(super) const SUCCESS: Code = Code(0);
/// Wrong usage.
pub(super) const USAGE: Code = Code(64);
/// The kernel cannot do it.
pub(super) const UNAVAILABLE: Code = Code(69);
/// Something unexpected.
pub(super) const INTERNAL: Code = Code(70);
/// The guard did not hold to the end.
pub(super) const VIOLATED: Code = Code(73);
/// Somebody else's guard, not FROZEN, or not all of the tree is there.
pub(super) const BUSY: Code = Code(75);
/// No permission.
pub(super) const NO_PERMISSION: Code = Code(77);
/// COMMAND cannot be executed, as the shell has it.
pub(super) const CANNOT_EXECUTE: Code = Code(126);
/// COMMAND is not there, as the shell has it.
pub(super) const NOT_FOUND: Code = Code(127);

/// For `--help`.
pub(super) const HELP: &str = "\
Exit codes: those of COMMAND or CRIU (128+N when signal N ended it), or
  64  wrong usage; an image that is there already, or is not good
  69  the kernel cannot do it, or not as far as --require wants; `criu check` says no
  70  internal error
  73  the guard was violated or ended by somebody: do not trust the checkpoint
  75  busy: another guard is in the way, or guards are held at another level; the
      cgroup is not FROZEN, or tasks of the checkpoint are elsewhere or being traced
  77  no permission
  126, 127  COMMAND or CRIU cannot be executed, or was not found";

/// The exit code for the first cause that has one.
pub(super) fn of_error(error: &anyhow::Error) -> Code {
    error
        .chain()
        .find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<super::guarded::Error>() {
                Some(error.code())
            } else if cause.is::<config::Error>() {
                Some(USAGE)
            } else if let Some(error) = cause.downcast_ref::<criu::Error>() {
                of_criu(error)
            } else if let Some(error) = cause.downcast_ref::<client::Error>() {
                Some(of_daemon(error))
            } else if let Some(error) = cause.downcast_ref::<bench::Error>() {
                of_bench(error)
            } else if let Some(error) = cause.downcast_ref::<guard::Error>() {
                of_guard(error)
            } else if let Some(error) = cause.downcast_ref::<cgroup::Error>() {
                of_cgroup(error)
            } else {
                cause.downcast_ref::<kernel::Error>().map(of_kernel)
            }
        })
        .unwrap_or(INTERNAL)
}

fn of_daemon(error: &client::Error) -> Code {
    use client::Error::{
        BadRequest, Busy, Disturbed, Failed, NotFrozen, NotGuarded, PermissionDenied, Stray,
        Unsupported,
    };
    match error {
        Busy { .. } | NotFrozen { .. } | Stray { .. } | NotGuarded { .. } | Disturbed { .. } => {
            BUSY
        }
        Unsupported { .. } => UNAVAILABLE,
        PermissionDenied { .. } => NO_PERMISSION,
        BadRequest { .. } => USAGE,
        Failed { .. } => INTERNAL,
    }
}

fn of_guard(error: &guard::Error) -> Option<Code> {
    Some(match error {
        guard::Error::Cgroup(error) => return of_cgroup(error),
        guard::Error::Kernel(error) => of_kernel(error),
        guard::Error::Contains { .. } | guard::Error::Overlap(..) => USAGE,
        guard::Error::Guarded { .. }
        | guard::Error::Nested
        | guard::Error::NotFrozen { .. }
        | guard::Error::DidNotFreeze { .. }
        | guard::Error::FrozenAncestor { .. }
        | guard::Error::FrozenDescendant { .. }
        | guard::Error::NotGuarded(_)
        | guard::Error::Stray { .. }
        | guard::Error::Traced(_)
        | guard::Error::Disturbed { .. }
        | guard::Error::InForce(_)
        | guard::Error::DaemonRuns
        | guard::Error::Stopping
        | guard::Error::Full(_) => BUSY,
        guard::Error::NoHolder(_) => USAGE,
        guard::Error::WasGone(_) => VIOLATED,
        guard::Error::PidNamespace | guard::Error::TooWeak { .. } => UNAVAILABLE,
        _ => INTERNAL,
    })
}

fn of_bench(error: &bench::Error) -> Option<Code> {
    match error {
        bench::Error::NoOperation { .. } | bench::Error::NoDumps => Some(USAGE),
        bench::Error::InUse => Some(BUSY),
        bench::Error::NoFreezer | bench::Error::NoMemory { .. } => Some(UNAVAILABLE),
        bench::Error::Criu(error) => of_criu(error),
        bench::Error::Cgroup(error) => of_cgroup(error),
        bench::Error::Guard(error) => of_guard(error),
        bench::Error::Kernel(error) => Some(of_kernel(error)),
        _ => None,
    }
}

fn of_cgroup(error: &cgroup::Error) -> Option<Code> {
    match error {
        cgroup::Error::Io { source, .. } => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Some(USAGE),
            io::ErrorKind::PermissionDenied => Some(NO_PERMISSION),
            io::ErrorKind::ResourceBusy => Some(BUSY),
            _ => None,
        },
        cgroup::Error::Proc(_) => None,
        _ => Some(USAGE),
    }
}

fn of_criu(error: &criu::Error) -> Option<Code> {
    match error {
        criu::Error::NotFound(_) => Some(NOT_FOUND),
        criu::Error::Run { .. } => Some(CANNOT_EXECUTE),
        criu::Error::NoCriu { .. } | criu::Error::Check { .. } => Some(UNAVAILABLE),
        criu::Error::Io { source, .. } => match source.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof => Some(USAGE),
            io::ErrorKind::PermissionDenied => Some(NO_PERMISSION),
            _ => None,
        },
        _ => Some(USAGE),
    }
}

fn of_kernel(error: &kernel::Error) -> Code {
    match error {
        kernel::Error::Permission => NO_PERMISSION,
        kernel::Error::Load { source, .. } if source.raw_os_error() == Some(libc::EPERM) => {
            NO_PERMISSION
        }
        kernel::Error::Missing { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
            NO_PERMISSION
        }
        kernel::Error::DaemonRuns
        | kernel::Error::OtherVersion
        | kernel::Error::OtherLevel { .. } => BUSY,
        _ => UNAVAILABLE,
    }
}
