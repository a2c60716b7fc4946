//! Locks of files in `/run/freezer-guard`, and of the directory of the pins. The kernel unlocks
//! a file when its owner exits or is killed.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    sys::stat::{major, minor},
};
use procfs::process::{ProcState, Process};

use super::Error;
use crate::sys;

/// The time that one process waits for another to unlock a file, and the same for one that is
/// stopped. (The longest work under the lock of the pins is a load of all programs, some seconds.)
const TIMEOUT: Duration = Duration::from_secs(60);
const TIMEOUT_OF_STOPPED: Duration = Duration::from_secs(3);
/// The first pause between two attempts and the longest: each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Whether something besides the time may end the wait for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// A signal to this process does, and so does a stopped owner.
    Interruptible,
    /// Nothing does: this process ends a guard.
    ToTheEnd,
}

/// Locks a file for this process alone.
///
/// # Errors
/// When another process keeps it for too long, or a signal that this process blocks has come
/// meanwhile.
pub(super) fn lock(mut file: File, wait: Wait) -> Result<Flock<File>, Error> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => {
                return Err(Error::failed("lock the pins")(io::Error::from(errno)));
            }
        };
        let is_interruptible = wait == Wait::Interruptible;
        if is_interruptible && let Some(signal) = sys::pending_signal() {
            return Err(Error::Interrupted(signal));
        }
        let is_late = start.elapsed() > TIMEOUT;
        if is_late || is_interruptible && start.elapsed() > TIMEOUT_OF_STOPPED {
            let owner = Owner::of(&file);
            if is_late || owner.as_ref().is_some_and(|owner| owner.is_stopped) {
                return Err(Error::Locked(owner));
            }
        }
        sleep(pause);
        pause = LONGEST_PAUSE.min(2 * pause);
    }
}

/// The process that has locked a file.
#[derive(Debug)]
pub struct Owner {
    /// Its pid.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Whether it is stopped, for instance by Ctrl-Z.
    pub is_stopped: bool,
}

impl Owner {
    /// The one that `/proc/locks` names.
    fn of(file: &File) -> Option<Self> {
        let found = file.metadata().ok()?;
        let (device, inode) = (found.dev(), found.ino());
        let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pid = locks.lines().find_map(|line| {
            // `1: FLOCK  ADVISORY  WRITE 233 00:1b:7 0 EOF`; in a line of a waiter `->` comes second.
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                [_, "FLOCK", _, _, pid, locked, ..] if locked == file => pid.parse().ok(),
                _ => None,
            }
        })?;
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        let is_stopped = matches!(stat.state(), Ok(ProcState::Stopped | ProcState::Tracing));
        Some(Self {
            pid,
            comm: stat.comm,
            is_stopped,
        })
    }
}

/// Where files are kept until the host is restarted.
pub(super) const RUN_DIR: &str = "/run/freezer-guard";

pub(super) fn make_run_dir() -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(RUN_DIR)
}

/// A file that is locked for as long as this lives.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Locks the file of this name; `None`: it has another owner.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn take(name: &str) -> io::Result<Option<Self>> {
        make_run_dir()?;
        // Only root can open the file, so only root can lock it.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path(name))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => Ok(Some(Self { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns whether the file has an owner. This asks the kernel and never locks the file: a
    /// service or a reader that starts meanwhile still gets the lock.
    pub(super) fn is_held(name: &str) -> bool {
        // Without the file there has been none.
        let Ok(file) = File::open(path(name)) else {
            return false;
        };
        let mut lock = whole_file();
        let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock));
        asked.is_ok() && lock.l_type != libc::F_UNLCK as i16
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(name)
}

/// A write lock of an open file description: see fcntl(2).
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
