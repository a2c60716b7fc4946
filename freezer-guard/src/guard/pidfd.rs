//! A process that is named by a descriptor, and so is never another one.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Error;
use crate::sys;

/// A pidfd.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process with this pid: it is for the caller to know that it is that one.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(pid: u32) -> Result<Self, Error> {
        let number = pid.try_into().ok().and_then(Pid::from_raw);
        number
            .and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok())
            .map(Self)
            .ok_or_else(|| Error::NoHolder(format!("pid {pid} has ended")))
    }

    /// Another descriptor of the same process.
    ///
    /// # Errors
    /// When there are too many.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends SIGKILL. A process that has ended needs none.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// From a descriptor that somebody has sent: see [`PidFd::pid`].
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The process's pid, as our pid namespace has it.
    ///
    /// # Errors
    /// When the process has ended, or it is no pidfd.
    pub fn pid(&self) -> Result<u32, Error> {
        let gone = || Error::NoHolder("the one that was named has ended".to_owned());
        let pid = sys::fdinfo(&self.0, "Pid").map_err(|_| gone())?;
        let pid = pid.and_then(|pid| pid.try_into().ok()).ok_or_else(gone)?;
        if self.has_ended().map_err(|_| gone())? {
            return Err(gone());
        }
        Ok(pid)
    }

    fn has_ended(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut polled, PollTimeout::ZERO)? > 0)
    }
}
