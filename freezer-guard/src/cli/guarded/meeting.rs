//! Several CRIUs that dump one container each: their action scripts wait for each other before a
//! CRIU may end its tree. So all checkpoints succeed, or no tree is lost.
//!
//! The meeting is a socket in the directory of the images, which is root's alone. A script that
//! connects says that its image is good, and gets [`YES`] once all are there. When one CRIU fails, or
//! freezer-guard ends, the socket is closed, which is a no.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

const NAME: &str = "freezer-guard.meeting";

const YES: u8 = b'y';

/// The side of the process that has started the CRIUs.
pub(in crate::cli) struct Meeting {
    listener: tokio::net::UnixListener,
    missing: usize,
    there: Vec<tokio::net::UnixStream>,
}

impl Meeting {
    /// Makes the socket.
    pub(in crate::cli) fn call(dir: &Path) -> io::Result<UnixListener> {
        let (path, _dir) = address(dir)?;
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Removes the socket.
    pub(in crate::cli) fn close(dir: &Path) -> io::Result<()> {
        fs::remove_file(dir.join(NAME))
    }

    pub(super) fn of(listener: UnixListener, size: usize) -> io::Result<Self> {
        Ok(Self {
            listener: tokio::net::UnixListener::from_std(listener)?,
            missing: size,
            there: Vec::new(),
        })
    }

    /// A CRIU has ended well and has not asked.
    pub(super) fn expect_one_less(&mut self) {
        self.missing = self.missing.saturating_sub(1);
    }

    /// Waits until all are there, lets them go on, and returns true. An error, or a script that has
    /// gone, ends the meeting: then no script gets a yes.
    pub(super) async fn gather(&mut self) -> bool {
        while self.missing > 0 {
            match self.listener.accept().await {
                Ok((script, _)) => {
                    self.there.push(script);
                    self.missing -= 1;
                }
                Err(_) => return false,
            }
        }
        let scripts = self.there.drain(..).map(tokio::net::UnixStream::into_std);
        let Ok(mut scripts) = scripts.collect::<io::Result<Vec<_>>>() else {
            return false;
        };
        if !scripts.iter_mut().all(waits) {
            return false;
        }
        for script in &mut scripts {
            // The buffer of a new socket has room.
            let _ = script.write_all(&[YES]);
        }
        true
    }

    /// The side of an action script: says that its image, in a directory below that of the meeting,
    /// is good, and returns whether all the others are too.
    pub(in crate::cli) fn attend(image: &Path) -> io::Result<bool> {
        let (path, _dir) = address(&image.join(".."))?;
        let mut answer = [0];
        let read = UnixStream::connect(path)?.read(&mut answer)?;
        Ok(read == 1 && answer[0] == YES)
    }
}

/// Whether a script still waits at the other end of this non-blocking socket.
fn waits(script: &mut UnixStream) -> bool {
    let read = script.read(&mut [0]);
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// A path of the socket that is short enough for `sockaddr_un`, as long as the directory is open.
fn address(dir: &Path) -> io::Result<(PathBuf, File)> {
    let dir = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd());
    Ok((path.into(), dir))
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    fn scripts(dir: &Path, number: usize) -> Vec<thread::JoinHandle<io::Result<bool>>> {
        let image = dir.join("image");
        fs::create_dir_all(&image).expect("a folder");
        let attend = || {
            let image = image.clone();
            thread::spawn(move || Meeting::attend(&image))
        };
        (0..number).map(|_| attend()).collect()
    }

    #[test]
    fn none_goes_on_when_one_has_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let listener = Meeting::call(dir.path()).expect("a socket");
        let (path, _open) = address(dir.path()).expect("its path");
        drop(UnixStream::connect(path).expect("it listens"));
        let scripts = scripts(dir.path(), 2);
        let agreed = gather(listener, 3, Duration::from_secs(20));
        assert_eq!(agreed, Some(false));
        for script in scripts {
            assert!(!script.join().expect("no panic").unwrap_or(false));
        }
    }

    /// The outcome of the meeting after this time at most.
    fn gather(listener: UnixListener, missing: usize, limit: Duration) -> Option<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut meeting = Meeting::of(listener, missing).expect("a meeting");
            let met = tokio::time::timeout(limit, meeting.gather()).await;
            met.ok()
        })
    }

    fn meet(missing: usize, attending: usize) -> Vec<bool> {
        let temp = tempfile::tempdir().expect("a folder");
        // Longer than `sockaddr_un`.
        let dir = temp.path().join("x".repeat(200));
        fs::create_dir(&dir).expect("a folder");
        let listener = Meeting::call(&dir).expect("a socket");
        let scripts = scripts(&dir, attending);
        let limit = Duration::from_millis(if missing > attending { 200 } else { 20_000 });
        let agreed = gather(listener, missing, limit);
        assert_eq!(agreed, (missing <= attending).then_some(true));
        Meeting::close(&dir).expect("it is there");
        let answers = scripts.into_iter().map(|script| script.join());
        answers
            .map(|answer| answer.expect("no panic").unwrap_or(false))
            .collect()
    }

    #[test]
    fn all_go_on_when_all_are_there() {
        assert_eq!(meet(3, 3), [true; 3]);
    }

    #[test]
    fn none_goes_on_when_one_is_missing() {
        assert_eq!(meet(3, 2), [false; 2]);
    }
}
