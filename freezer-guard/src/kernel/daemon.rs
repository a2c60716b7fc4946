//! Whether the daemon runs: it owns the lock of a file.

use super::{
    Error,
    lock::{FileLock, RUN_DIR},
};

const NAME: &str = "daemon";

/// The right to be the host's daemon.
#[derive(Debug)]
pub struct DaemonLock {
    _lock: FileLock,
}

impl DaemonLock {
    /// Takes it.
    ///
    /// # Errors
    /// When another daemon has it.
    pub fn take() -> Result<Self, Error> {
        match FileLock::take(NAME) {
            Ok(Some(lock)) => Ok(Self { _lock: lock }),
            Ok(None) => Err(Error::DaemonRuns),
            Err(error) => Err(Error::failed(format!("lock {RUN_DIR}/{NAME}"))(error)),
        }
    }
}

/// Returns whether there is one.
pub fn daemon_runs() -> bool {
    FileLock::is_held(NAME)
}
