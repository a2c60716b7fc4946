//! Whether the daemon runs: it owns the lock of a file.

use std::{fs, io, os::unix::fs::MetadataExt as _};

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
    /// When another daemon has it, or the directory of the lock is not the host's.
    pub fn take() -> Result<Self, Error> {
        let lock = FileLock::take(NAME);
        if !is_run_dir_of_host() {
            return Err(Error::OtherRunDir);
        }
        match lock {
            Ok(Some(lock)) => Ok(Self { _lock: lock }),
            Ok(None) => Err(Error::DaemonRuns),
            Err(error) => Err(Error::failed(format!("lock {RUN_DIR}/{NAME}"))(error)),
        }
    }
}

/// Two daemons with locks in different directories would not know of each other.
fn is_run_dir_of_host() -> bool {
    let identity = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (
        identity(&format!("/proc/1/root{RUN_DIR}")),
        identity(RUN_DIR),
    ) {
        (Ok(of_host), Ok(here)) => of_host == here,
        // Without the right to look there, this is the sandbox of the service.
        (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    }
}

/// Returns whether there is one.
pub fn daemon_runs() -> bool {
    FileLock::is_held(NAME)
}
