//! Locks of files in `/run/freezer-guard`. The kernel unlocks a file when its owner exits
//! or is killed.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

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
