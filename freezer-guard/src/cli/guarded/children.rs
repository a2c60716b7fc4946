//! The processes of COMMAND: one, or a CRIU for each tree of a checkpoint.

use std::{
    ffi::OsString,
    future::{pending, poll_fn},
    io,
    os::unix::process::ExitStatusExt as _,
    pin::pin,
    process::ExitStatus,
    task::Poll,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::{Signals, meeting::Meeting};
use crate::cli::error::{Error, Result};

/// Processes that were started together. They end well only together.
pub(super) struct Children {
    running: Vec<(usize, Child)>,
    /// In the order of the commands.
    statuses: Vec<ExitStatus>,
    /// The first one that failed.
    failure: Option<ExitStatus>,
    meeting: Option<Meeting>,
    is_decided: bool,
}

impl Children {
    /// Starts a process for each command.
    pub(super) fn start(
        commands: &[Vec<OsString>],
        meeting: Option<Meeting>,
        signals: &Signals,
    ) -> Result<Self> {
        let mut children = Self {
            running: Vec::new(),
            statuses: vec![ExitStatus::default(); commands.len()],
            failure: None,
            is_decided: false,
            meeting,
        };
        let are_several = children.meeting.is_some();
        for (number, command) in commands.iter().enumerate() {
            match spawn(command, signals, are_several) {
                Ok(child) => children.running.push((number, child)),
                Err(error) => {
                    children.start_kill();
                    return Err(error);
                }
            }
        }
        Ok(children)
    }

    /// Waits until all have ended, and returns the status of the first one that failed. When one
    /// fails, those that wait for it in the meeting get a no. It may be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        while !self.running.is_empty() {
            tokio::select! {
                biased;
                ended = next_end(&mut self.running) => {
                    let (number, status) = ended?;
                    self.statuses[number] = status;
                    if !status.success() {
                        self.failure.get_or_insert(status);
                        self.meeting = None;
                    } else if let Some(meeting) = &mut self.meeting {
                        meeting.expect_one_less();
                    }
                }
                agreed = gather(&mut self.meeting) => {
                    self.is_decided = agreed;
                    self.meeting = None;
                }
            }
        }
        Ok(self.failure.unwrap_or_default())
    }

    /// How each ended, once all have: in the order of the commands.
    pub(super) fn into_statuses(self) -> Vec<ExitStatus> {
        self.statuses
    }

    /// Whether the meeting has let all of them end their trees. From then on nothing may stop them: a
    /// tree would be lost, or go on while the others have ended.
    pub(super) fn is_decided(&self) -> bool {
        self.is_decided
    }

    /// Sends a signal to each. One may have ended just now.
    pub(super) fn signal(&self, signal: Signal) {
        let pids = self.running.iter().filter_map(|(_, child)| child.id());
        for pid in pids {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// Kills each, and does not wait for their ends.
    pub(super) fn start_kill(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.start_kill();
        }
    }
}

/// Makes a status of the end by this signal.
pub(super) fn ended_by(signal: Signal) -> ExitStatus {
    ExitStatus::from_raw(signal as i32)
}

/// Takes the next one that ends out of the list.
async fn next_end(running: &mut Vec<(usize, Child)>) -> io::Result<(usize, ExitStatus)> {
    let (place, status) = poll_fn(|context| {
        for (place, (_, child)) in running.iter_mut().enumerate() {
            if let Poll::Ready(status) = pin!(child.wait()).poll(context) {
                return Poll::Ready((place, status));
            }
        }
        Poll::Pending
    })
    .await;
    let (number, _) = running.swap_remove(place);
    Ok((number, status?))
}

/// Returns when the meeting is over, and whether all may end their trees; without one, never.
async fn gather(meeting: &mut Option<Meeting>) -> bool {
    match meeting {
        Some(meeting) => meeting.gather().await,
        None => pending().await,
    }
}

fn spawn(command: &[OsString], signals: &Signals, is_one_of_several: bool) -> Result<Child> {
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]);
    if is_one_of_several {
        // Its configuration files could name a script that runs after ours.
        child.env_remove("CRIU_CONFIG_FILE");
    }
    signals.release_in(&mut child);
    child.spawn().map_err(|source| Error::Command {
        command: command[0].display().to_string(),
        source,
    })
}
