//! The state of a cgroup's freezer, and changing it.

use std::fmt;

use procfs::process::Process;

use super::{Cgroup, Error, Version};
use crate::words::escaped;

/// The state of a freezer, in the words of the v1 interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// Its tasks run.
    Thawed,
    /// Its tasks are being frozen.
    Freezing,
    /// No task of it runs.
    Frozen,
}

impl fmt::Display for FreezerState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Thawed => "THAWED",
            Self::Freezing => "FREEZING",
            Self::Frozen => "FROZEN",
        })
    }
}

impl Cgroup {
    /// Its state, whatever the reason: its own freezer or one above it.
    ///
    /// # Errors
    /// When the cgroup is gone or cannot be read.
    pub fn freezer_state(&self) -> Result<FreezerState, Error> {
        Ok(match self.version {
            Version::V1 => match self.read("freezer.state")?.trim() {
                "FROZEN" => FreezerState::Frozen,
                "FREEZING" => FreezerState::Freezing,
                _ => FreezerState::Thawed,
            },
            Version::V2
                if self
                    .read("cgroup.events")?
                    .lines()
                    .any(|line| line == "frozen 1") =>
            {
                FreezerState::Frozen
            }
            Version::V2 if self.is_self_frozen()? => FreezerState::Freezing,
            Version::V2 => FreezerState::Thawed,
        })
    }

    /// Whether its own freezer is set, not only one above it.
    ///
    /// # Errors
    /// When the cgroup is gone or cannot be read.
    pub fn is_self_frozen(&self) -> Result<bool, Error> {
        let file = match self.version {
            Version::V1 => "freezer.self_freezing",
            Version::V2 => "cgroup.freeze",
        };
        Ok(self.read(file)?.trim() == "1")
    }

    /// Starts to freeze it. Wait for [`FreezerState::Frozen`].
    ///
    /// # Errors
    /// EBUSY from somebody's guard, EACCES without permission.
    pub fn freeze(&self) -> Result<(), Error> {
        let value = match self.version {
            Version::V1 => "FROZEN",
            Version::V2 => "1",
        };
        self.write_freezer(value)
    }

    /// Thaws it.
    ///
    /// # Errors
    /// As for [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), Error> {
        let value = match self.version {
            Version::V1 => "THAWED",
            Version::V2 => "0",
        };
        self.write_freezer(value)
    }

    /// Writes this text to the freezer, whatever it is.
    pub(crate) fn write_freezer(&self, text: &str) -> Result<(), Error> {
        self.write(self.version.freezer(), text)
    }

    /// Writes this text to `cgroup.procs`, whatever it is.
    pub(crate) fn write_procs(&self, text: &str) -> Result<(), Error> {
        self.write("cgroup.procs", text)
    }

    /// The tasks in it and below it that are not frozen, each as
    /// `pid 12 (sh, state D in do_wait)`.
    ///
    /// # Errors
    /// When the lists of tasks cannot be read.
    pub fn not_frozen(&self) -> Result<Vec<String>, Error> {
        let mut tasks = self.threads()?;
        for descendant in self.descendants()? {
            tasks.extend(descendant.threads()?);
        }
        Ok(tasks.into_iter().filter_map(describe_if_running).collect())
    }
}

/// Frozen tasks sleep in `__refrigerator` (v1) or `do_freezer_trap` (v2,
/// `kernel/signal.c`); one that is gone meanwhile needs no name.
fn describe_if_running(pid: i32) -> Option<String> {
    let process = Process::new(pid).ok()?;
    let stat = process.stat().ok()?;
    let place = process.wchan().unwrap_or_default();
    let frozen = [
        "__refrigerator",
        "do_freezer_trap",
        "get_signal",
        "ptrace_stop",
    ];
    if frozen.contains(&place.as_str()) {
        return None;
    }
    let place = match place.as_str() {
        "" | "0" => String::new(),
        place => format!(" in {place}"),
    };
    Some(format!(
        "pid {pid} ({}, state {}{place})",
        escaped(&stat.comm),
        stat.state
    ))
}
