//! From errors to exit codes.

use std::io;

use freezer_guard::{bench, cgroup, criu, guard, kernel};

use super::{
    client,
    exit::{
        BUSY, CANNOT_EXECUTE, Code, INTERNAL, NO_PERMISSION, NOT_FOUND, UNAVAILABLE, USAGE,
        VIOLATED,
    },
    guarded,
};
use crate::daemon::config;

/// The exit code for the first cause that has one.
pub(super) fn code(error: &anyhow::Error) -> Code {
    error
        .chain()
        .find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<guarded::Error>() {
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
        | guard::Error::Stopping => BUSY,
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
        | kernel::Error::Full(_)
        | kernel::Error::OtherVersion
        | kernel::Error::OtherLevel { .. } => BUSY,
        _ => UNAVAILABLE,
    }
}
