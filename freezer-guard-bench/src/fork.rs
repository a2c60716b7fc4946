//! The bare fork that is measured.

#![expect(unsafe_code, reason = "fork(2)")]

use std::io;

use nix::{
    sys::wait::waitpid,
    unistd::{ForkResult, fork},
};

/// Forks a child that ends at once, and waits for it.
///
/// # Errors
/// When there can be no child.
pub(crate) fn fork_and_exit() -> io::Result<()> {
    // SAFETY: the child calls nothing but `_exit`, which is async-signal-safe
    // (signal-safety(7)).
    match unsafe { fork() }? {
        // SAFETY: as above.
        ForkResult::Child => unsafe { libc::_exit(0) },
        ForkResult::Parent { child } => Ok(waitpid(child, None).map(drop)?),
    }
}
