//! An attempt to disturb a checkpoint while CRIU holds the container's tasks seized.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    super::{
        cgroups::within,
        process::{Finished, LONG, Process, guards},
    },
    Way,
    container::Container,
    engine::{Kind, State, Verb, command},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Pause,
    Resume,
    Exec,
    Update,
    Kill,
    Stop,
    Checkpoint,
    FreezeScope,
    ThawScope,
    FreezeSlice,
}

impl Trouble {
    pub(super) const ALL: [Self; 10] = [
        Self::Pause,
        Self::Resume,
        Self::Exec,
        Self::Update,
        Self::Kill,
        Self::Stop,
        Self::Checkpoint,
        Self::FreezeScope,
        Self::ThawScope,
        Self::FreezeSlice,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Exec => "exec",
            Self::Update => "update",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Checkpoint => "second checkpoint",
            Self::FreezeScope => "systemctl freeze SCOPE",
            Self::ThawScope => "systemctl thaw SCOPE",
            Self::FreezeSlice => "systemctl freeze SLICE",
        }
    }

    /// The engine's own command, if it is one.
    fn verb(self) -> Option<Verb> {
        match self {
            Self::Pause => Some(Verb::Pause),
            Self::Resume => Some(Verb::Resume),
            Self::Exec => Some(Verb::Exec),
            Self::Update => Some(Verb::Update),
            Self::Kill => Some(Verb::Kill),
            Self::Stop => Some(Verb::Stop),
            _ => None,
        }
    }

    /// The attempt, unless the engine has no such thing.
    fn command(self, container: &Container) -> Result<Option<Command>> {
        if let Some(verb) = self.verb() {
            return Ok(container.verb(verb));
        }
        if self == Self::Checkpoint {
            let kind = container.engine.restorable();
            return Ok(Some(container.checkpoint(Way::Bare, "second", kind)?));
        }
        let Some((scope, slice)) = container.units()? else {
            return Ok(None);
        };
        let (verb, unit) = match self {
            Self::ThawScope => ("thaw", &*scope),
            Self::FreezeSlice => ("freeze", slice),
            _ => ("freeze", &*scope),
        };
        Ok(Some(command("systemctl", &[verb, unit])))
    }

    /// Whether a container that its checkpoint leaves running may be in this state after it.
    pub(super) fn may_leave(self, state: &State) -> bool {
        match state {
            State::Running => true,
            State::Paused => self == Self::Pause,
            State::Ended => matches!(self, Self::Kill | Self::Stop),
            State::Other(_) => false,
        }
    }
}

/// How long an attempt may take before it is one that waits.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

/// A checkpoint, and an attempt in its middle. CRIU goes on by now.
pub(super) struct Disturbed {
    pub(super) criu: i32,
    /// The guard, unless the checkpoint is bare.
    pub(super) guard: Value,
    /// The counters, while the tasks were seized.
    pub(super) since: Vec<u64>,
    /// Whether the attempt had not ended before CRIU went on.
    pub(super) waits: bool,
    pub(super) attempt: Process,
    pub(super) checkpoint: Process,
}

impl Disturbed {
    /// Holds CRIU up, and makes the attempt, unless the engine has no such thing.
    pub(super) fn of(container: &Container, way: Way, trouble: Trouble) -> Result<Option<Self>> {
        // Questions to the engine come first: a checkpoint is quick.
        let Some(mut attempt) = trouble.command(container)? else {
            return Ok(None);
        };
        let (checkpoint, criu) = hold(container, way, container.engine.restorable())?;
        let guard = match way {
            Way::Bare => Value::Null,
            _ => armed(way)?,
        };
        let since = container.counters().read()?;
        let mut attempt = Process::spawn(&mut attempt)?;
        attempt.close_input();
        let start = Instant::now();
        while !attempt.has_ended()? && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        let waits = !attempt.has_ended()?;
        ensure!(is_criu(criu), "CRIU is gone");
        kill(Pid::from_raw(criu), Signal::SIGCONT)?;
        Ok(Some(Self {
            criu,
            guard,
            since,
            waits,
            attempt,
            checkpoint,
        }))
    }
}

/// The outcome of an attempt.
pub(super) fn outcome(waits: bool, code: i32) -> &'static str {
    match (waits, code) {
        (true, 0) => "waits, then works",
        (true, _) => "waits, then fails",
        (false, 0) => "works",
        (false, _) => "is refused",
    }
}

/// The guard, once everything that refuses is attached.
pub(super) fn armed(way: Way) -> Result<Value> {
    let mut found = Value::Null;
    within(LONG, "a guard at enforce", || {
        let held = guards()?;
        ensure!(held.len() == 1, "there are {held:?}");
        found = held.into_iter().next().unwrap_or_default();
        Ok(found["level"] == "enforce")
    })?;
    ensure!(found["automatic"] == (way == Way::Automatic), "{found}");
    Ok(found)
}

pub(super) fn is_criu(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim() == "criu")
}

/// Starts a checkpoint, and stops CRIU once it has seized the tasks and thawed their cgroup.
pub(super) fn hold(container: &Container, way: Way, kind: Kind<'_>) -> Result<(Process, i32)> {
    let hierarchy = container.hierarchy;
    let status = PathBuf::from(format!("/proc/{}/status", container.pid()?));
    let freezer = container.cgroup()?.join(hierarchy.file());
    let mut checkpoint = Process::spawn(&mut container.checkpoint(way, "image", kind)?)?;
    checkpoint.close_input();
    let start = Instant::now();
    loop {
        ensure!(
            !checkpoint.has_ended()?,
            "it has ended before it was held up"
        );
        ensure!(start.elapsed() < LONG, "CRIU does not come");
        if let Some(criu) = tracer(&status)
            && fs::read_to_string(&freezer)?.trim() == hierarchy.thawed()
        {
            kill(Pid::from_raw(criu), Signal::SIGSTOP)?;
            return Ok((checkpoint, criu));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The CRIU that has seized the task with this file.
fn tracer(status: &Path) -> Option<i32> {
    let text = fs::read_to_string(status).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|pid| is_criu(*pid))
}

/// The last line, without what differs from run to run.
pub(super) fn last_line(finished: &Finished, id: &str) -> String {
    let text = format!("{}\n{}", finished.stdout, finished.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    let last = last.unwrap_or_default();
    // runc's and podman's log lines begin with the time.
    let said = last.split_once("msg=").map_or(last, |(_, said)| said);
    let line = said.replace(id, "ID").replace('|', " ");
    // podman's own ids.
    let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = line.split(|letter: char| !letter.is_ascii_alphanumeric());
    let line = words
        .filter(is_id)
        .fold(line.clone(), |line, word| line.replace(word, "ID"));
    match finished.code {
        0 => String::new(),
        _ => line.chars().take(160).collect(),
    }
}
