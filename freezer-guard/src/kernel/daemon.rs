//! Whether the daemon runs: it owns the lock of a file.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
};

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
    /// When another daemon has it, or the directory of the lock is not the host's, or may not be.
    pub fn take() -> Result<Self, Error> {
        let lock = FileLock::take(NAME);
        let lock = lock.map_err(Error::failed(format!("lock {RUN_DIR}/{NAME}")))?;
        let identity = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
        let of_host = identity(&format!("/proc/1/root{RUN_DIR}"));
        compare(of_host, identity(RUN_DIR))?;
        lock.map(|lock| Self { _lock: lock })
            .ok_or(Error::DaemonRuns)
    }
}

/// Compares the directory of PID 1 with that of this process. Two daemons with locks in different directories
/// would not know of each other.
///
/// A process without the right to look there (EACCES) is refused too. No user gains by either answer, since
/// the caller has CAP_BPF already; but a container with that capability, the host's bpffs, and a directory of
/// its own would become a second daemon. Each supported way to run the daemon has CAP_SYS_PTRACE.
fn compare(of_host: io::Result<(u64, u64)>, here: io::Result<(u64, u64)>) -> Result<(), Error> {
    match (of_host, here) {
        (Ok(of_host), Ok(here)) if of_host == here => Ok(()),
        (Ok(_), Ok(_)) => Err(Error::OtherRunDir),
        (Err(error), _) | (Ok(_), Err(error)) if error.kind() == ErrorKind::NotFound => {
            Err(Error::OtherRunDir)
        }
        (Err(error), _) | (_, Err(error)) => Err(Error::UnknownRunDir(error)),
    }
}

/// Returns whether there is one.
pub fn daemon_runs() -> bool {
    FileLock::is_held(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_of_the_host_will_do() {
        let error = |kind: ErrorKind| Err(kind.into());
        assert!(compare(Ok((1, 2)), Ok((1, 2))).is_ok());
        for (of_host, here) in [
            (Ok((1, 3)), Ok((1, 2))),
            (Ok((3, 2)), Ok((1, 2))),
            (error(ErrorKind::NotFound), Ok((1, 2))),
            (Ok((1, 2)), error(ErrorKind::NotFound)),
        ] {
            let compared = compare(of_host, here);
            assert!(matches!(compared, Err(Error::OtherRunDir)), "{compared:?}");
        }
        for (of_host, here) in [
            (error(ErrorKind::PermissionDenied), Ok((1, 2))),
            (Ok((1, 2)), error(ErrorKind::PermissionDenied)),
        ] {
            let compared = compare(of_host, here);
            let is_unknown = matches!(compared, Err(Error::UnknownRunDir(_)));
            assert!(is_unknown, "{compared:?}");
        }
    }
}
