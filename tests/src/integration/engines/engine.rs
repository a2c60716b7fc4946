//! What the tests ask of an engine. Each family of engines has a file of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::{cgroups::unique, process::run};

/// The program of every container: it counts, in this number of processes.
pub(super) const PROGRAM: [&str; 5] = ["/guest-tool", "count", "/count", "--processes", "2"];
/// [`PROGRAM`]'s processes: the first one and its children.
pub(super) const PROCESSES: usize = 3;
/// The slice of containers, if the engine takes one.
pub(super) const SLICE: &str = "engines.slice";

/// An engine, driven by its own command line.
pub(super) trait Engine: Send + Sync {
    /// Returns its name in the tables, such as `podman with runc`.
    fn title(&self) -> &'static str;

    /// Returns its version and those of the engines that it calls.
    fn versions(&self) -> Result<String>;

    /// Returns whether this release of Debian has it with a CRIU that serves it.
    fn is_in(&self, release: &str) -> bool {
        let _ = release;
        true
    }

    /// Returns whether this build can make checkpoints.
    fn can_checkpoint(&self) -> Result<bool> {
        Ok(true)
    }

    /// Returns how its pre-dump meets running tasks.
    fn pre_dump(&self) -> PreDump {
        PreDump::Missing
    }

    /// Returns whether its checkpoint freezes the container's cgroup. Otherwise CRIU seizes tasks
    /// that run.
    fn freezes(&self) -> bool {
        true
    }

    /// Returns the unit of the daemon that starts CRIU. Without one, the engine's command does.
    fn daemon(&self) -> Option<&'static str> {
        None
    }

    /// Returns what its checkpoint can make of the container.
    fn ending(&self) -> Ending {
        Ending::Restorable
    }

    /// Returns whether it can make a checkpoint of a container that it has restored.
    fn checkpoints_restored(&self) -> bool {
        true
    }

    /// Returns whether the first of two checkpoints at one time can be good.
    fn bears_a_second_checkpoint(&self) -> bool {
        true
    }

    /// Returns the slice of its containers. Without one, systemd does not know the containers.
    fn slice(&self) -> Option<&'static str> {
        Some(SLICE)
    }

    /// Returns the names of the programs that kill the rest of the container once CRIU has killed its
    /// first process.
    fn supervisors(&self) -> &'static [&'static str] {
        &[]
    }

    /// Starts its daemon and loads an image, unless that has been done.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Starts a container that runs [`PROGRAM`] on the host's network: CRIU cannot dump a
    /// network namespace on every kernel.
    fn start(&self, home: &Home) -> Result<()>;

    /// Returns the command that makes a checkpoint with this name.
    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command>;

    /// Returns the command that makes the same checkpoint under a guard of its own. Without one,
    /// `freezer-guard run` runs the engine's command.
    fn guarded(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Option<Command>> {
        let _ = (home, name, kind);
        Ok(None)
    }

    /// Returns the command of freezer-guard that [`Way::Run`](super::Way::Run) is, for the tables.
    fn guarded_by(&self) -> &'static str {
        "`run --freeze`"
    }

    /// Restores the container from the checkpoint with this name, by another engine if its own
    /// cannot.
    fn restore(&self, home: &Home, name: &str) -> Result<()>;

    /// Returns what it says of the container, and the first process. It may know it no more.
    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>>;

    /// Returns the directory that [`PROGRAM`] counts in, as seen from here.
    fn counters(&self, home: &Home) -> PathBuf {
        home.counters()
    }

    /// Returns the command for this, if it has one.
    fn verb(&self, home: &Home, verb: Verb) -> Option<Command>;

    /// Ends and forgets the container, as far as it is there.
    fn remove(&self, home: &Home);
}

/// How a pre-dump meets running tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PreDump {
    /// There is none.
    Missing,
    /// CRIU freezes them to seize them.
    Frozen,
    /// CRIU seizes them while they run.
    Running,
}

/// What a checkpoint can make of the container, besides leaving it running.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It ends the container, and the engine can restore that.
    Restorable,
    /// It ends the container. The engine restores only what a checkpoint has left running.
    Final,
    /// It always leaves the container running, and a restore needs more than a guest has.
    Never,
    /// It ends the container. The engine has no restore, but another engine has one for its images.
    OneWay,
}

/// Which checkpoint.
#[derive(Clone, Copy, Default)]
pub(super) struct Kind<'a> {
    pub(super) leave_running: bool,
    pub(super) pre_dump: bool,
    /// The image that it builds on.
    pub(super) parent: Option<&'a str>,
}

impl dyn Engine {
    /// Returns whether it can restore a container in a guest.
    pub(super) fn restores(&self) -> bool {
        !matches!(self.ending(), Ending::Never | Ending::OneWay)
    }

    /// Returns the kind of checkpoint that it can restore, or at least make.
    pub(super) fn restorable(&self) -> Kind<'static> {
        Kind {
            leave_running: self.ending() != Ending::Restorable,
            ..Kind::default()
        }
    }
}

/// What an engine can do with a container, besides checkpoints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Pause,
    Resume,
    /// Runs a program in it.
    Exec,
    /// Changes its memory limit.
    Update,
    /// Sends SIGKILL.
    Kill,
    /// Asks it to end.
    Stop,
    /// Ends and forgets it.
    Remove,
    /// Has the engine start it again whenever it ends.
    RestartAlways,
}

/// What an engine says of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    Ended,
    /// Something else, in the engine's own word.
    Other(String),
}

impl State {
    /// Takes the word of any of the engines.
    pub(super) fn of(word: &str) -> Self {
        match &*word.to_ascii_lowercase() {
            "running" => Self::Running,
            "paused" | "frozen" => Self::Paused,
            // Docker calls it dead if it could not remove all of it.
            "exited" | "stopped" | "dead" => Self::Ended,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// The name of a container, and a directory for all that belongs to it.
pub(super) struct Home {
    pub(super) id: String,
    pub(super) dir: PathBuf,
}

impl Home {
    /// Returns one that no other test of this boot has.
    pub(super) fn new() -> Self {
        let id = unique();
        let dir = Path::new("/root").join(&id);
        Self { id, dir }
    }

    /// Returns the directory with the container's root. Engines with images of their own
    /// use only its directory [`counters`](Self::counters).
    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Returns the directory that [`PROGRAM`] counts in.
    pub(super) fn counters(&self) -> PathBuf {
        self.rootfs().join("count")
    }

    /// Returns the directory of a checkpoint's image.
    pub(super) fn image(&self, name: &str) -> PathBuf {
        self.dir.join("images").join(name)
    }
}

/// Returns a command with these words.
pub(super) fn command(program: &str, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// Runs a command that leaves a container behind, which would inherit a pipe of ours.
pub(super) fn quietly(command: &mut Command) -> Result<()> {
    let errors = Path::new("/root/errors");
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(errors)?)
        .status()
        .with_context(|| format!("run {command:?}"))?;
    let said = fs::read_to_string(errors).unwrap_or_default();
    ensure!(status.success(), "{command:?}: {status}: {said}");
    Ok(())
}

/// Returns `runc 1.1.15`, without the part that Debian adds.
pub(super) fn version(program: &str) -> Result<String> {
    let output = run(&mut command(program, &["--version"]))?
        .expect(0)?
        .stdout;
    // `runc version 1.1.15+ds1`, `Docker version 28.5.2+dfsg4, build …`
    let version = output
        .split_whitespace()
        .find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))
        .and_then(|word| word.split(['+', '~', ',']).next());
    let version = version.with_context(|| format!("{program} has no version: {output}"))?;
    Ok(format!("{program} {version}"))
}

/// Returns the state and the first process from JSON, where the engine prints it.
pub(super) fn inspect(command: &mut Command, at: [&str; 2]) -> Result<Option<(State, i32)>> {
    let finished = run(command)?;
    if finished.code != 0 {
        return Ok(None);
    }
    let said: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("not JSON: {finished:?}"))?;
    let [state, pid] = at.map(|at| said.pointer(at).cloned().unwrap_or_default());
    let state = State::of(state.as_str().context("a status")?);
    Ok(Some((state, i32::try_from(pid.as_i64().unwrap_or(0))?)))
}
