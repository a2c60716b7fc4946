//! Whether the daemon runs: it holds a file locked for as long as it lives. The
//! kernel unlocks it when the daemon is gone, however it went.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    thread::sleep,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::Error;

/// Where files are kept until the host is restarted.
pub(super) const RUN_DIR: &str = "/run/freezer-guard";

pub(super) fn make_run_dir() -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(RUN_DIR)
}

/// Opens a file that is there to be locked: by root alone, since who can open it
/// can lock it.
pub(super) fn open_lock(name: &str) -> io::Result<File> {
    make_run_dir()?;
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(Path::new(RUN_DIR).join(name))
}

const NAME: &str = "daemon";

/// The right to be the host's daemon.
#[derive(Debug)]
pub struct DaemonLock {
    _lock: Flock<File>,
}

impl DaemonLock {
    /// Takes it.
    ///
    /// # Errors
    /// When another daemon has it.
    pub fn take() -> Result<Self, Error> {
        let failed = || Error::failed(format!("lock {RUN_DIR}/{NAME}"));
        // Who asks whether there is a daemon has it for a moment.
        const ATTEMPTS: u32 = 50;
        for _ in 0..ATTEMPTS {
            let file = open_lock(NAME).map_err(failed())?;
            if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return Ok(Self { _lock: lock });
            }
            sleep(Duration::from_millis(20));
        }
        Err(Error::DaemonRuns)
    }
}

/// Whether there is one.
pub fn daemon_runs() -> bool {
    // Without its folder there has been none.
    let Ok(file) = File::options()
        .write(true)
        .open(Path::new(RUN_DIR).join(NAME))
    else {
        return false;
    };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}
