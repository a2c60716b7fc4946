//! What an engine says of a container, and what the kernel has of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use super::{
    super::{cgroups::Hierarchy, service::eventually},
    container::Container,
    engine::{PROCESSES, State},
};

/// A container's first process and its cgroup, to be looked at when the engine may have
/// forgotten both.
pub(super) struct Truth {
    pid: i32,
    cgroup: PathBuf,
    hierarchy: Hierarchy,
}

impl Truth {
    /// Takes those of a container that runs.
    pub(super) fn of(container: &Container) -> Result<Self> {
        Ok(Self {
            pid: container.pid()?,
            cgroup: container.cgroup()?,
            hierarchy: container.hierarchy,
        })
    }

    /// Waits until engine and kernel agree that the container is in this state.
    pub(super) fn expect(&self, container: &Container, state: &State) -> Result<()> {
        let mut why = String::new();
        let agree = eventually("engine and kernel agree", || {
            why = self.complaint(container, state)?;
            Ok(why.is_empty())
        });
        agree.map_err(|error| error.context(why))
    }

    /// Returns on which point engine and kernel do not agree that it is in this state.
    pub(super) fn complaint(&self, container: &Container, expected: &State) -> Result<String> {
        let state = container.state()?;
        let is_ended = matches!(state, None | Some(State::Ended));
        match expected {
            State::Ended if !is_ended => return Ok(format!("its engine says {state:?}")),
            State::Ended => {}
            _ if state.as_ref() != Some(expected) => {
                return Ok(format!("its engine says {state:?}, not {expected:?}"));
            }
            _ => {}
        }
        let tasks = tasks(&self.cgroup);
        if *expected == State::Ended {
            return Ok(match (tasks.is_empty(), is_there(self.pid)) {
                (true, false) => String::new(),
                (false, _) => format!("{} has {tasks:?}", self.cgroup.display()),
                (true, true) => format!("process {} is still there", self.pid),
            });
        }
        if tasks.len() != PROCESSES {
            return Ok(format!("{} has {tasks:?}", self.cgroup.display()));
        }
        let is_frozen = self.is_frozen()?;
        if is_frozen != (*expected == State::Paused) {
            return Ok(format!("{}: frozen: {is_frozen}", self.cgroup.display()));
        }
        Ok(tasks.into_iter().find_map(sickness).unwrap_or_default())
    }

    fn is_frozen(&self) -> Result<bool> {
        let asked = fs::read_to_string(self.cgroup.join(self.hierarchy.file()))?;
        let asked = asked.trim() != self.hierarchy.thawed();
        if self.hierarchy == Hierarchy::V1 {
            return Ok(asked);
        }
        let events = fs::read_to_string(self.cgroup.join("cgroup.events"))?;
        let frozen = events.lines().any(|line| line == "frozen 1");
        ensure!(
            asked == frozen || asked,
            "{} is frozen from above",
            self.cgroup.display()
        );
        Ok(asked)
    }
}

/// The processes of a cgroup that may have gone.
fn tasks(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Returns whether there is such a process, or a zombie of one.
fn is_there(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Returns what is wrong with a process: it is a zombie, stopped, or traced.
fn sickness(pid: i32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)).unwrap_or("")
    };
    let (state, tracer) = (field("State:").trim(), field("TracerPid:").trim());
    let is_well = !state.starts_with(['Z', 'T', 't', 'X']) && tracer == "0";
    (!is_well).then(|| format!("process {pid} is {state}, traced by {tracer}"))
}
