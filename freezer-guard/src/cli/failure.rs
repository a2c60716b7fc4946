//! From errors to exit codes.

use std::io;

use freezer_guard::{Kind, cgroup, criu, guard, kernel};

use super::{
    client,
    exit::{BUSY, CANNOT_EXECUTE, Code, INTERNAL, NO_PERMISSION, NOT_FOUND, UNAVAILABLE, USAGE},
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
            } else if let Some(error) = cause.downcast_ref::<guard::Error>() {
                Some(of_kind(error.kind()))
            } else if let Some(error) = cause.downcast_ref::<cgroup::Error>() {
                Some(of_kind(error.kind()))
            } else {
                let error = cause.downcast_ref::<kernel::Error>();
                error.map(|error| of_kind(error.kind()))
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

fn of_kind(kind: Kind) -> Code {
    Code(kind.exit_code())
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
