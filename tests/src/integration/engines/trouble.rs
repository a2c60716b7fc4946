//! Somebody, the engine itself perhaps, gets at a container in the middle of its
//! checkpoint.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    super::{
        cgroups::{Hierarchy, within},
        process::{Finished, LONG, Process, guards, last_guard, run},
        service::eventually,
    },
    Way,
    container::{Container, Engine, Kind},
    life::{is_violated, resume},
    say_row,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
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
    const ALL: [Self; 10] = [
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

    fn name(self) -> &'static str {
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

    fn command(self, container: &Container) -> Result<Command> {
        let engine = container.engine;
        let podman = engine.is_podman();
        let systemctl = |verb: &str, unit: &str| {
            let mut command = Command::new("systemctl");
            command.args([verb, unit]);
            command
        };
        let (scope, slice) = container.units()?;
        Ok(match self {
            Self::Pause => container.verb(&["pause"]),
            Self::Resume => container.verb(&[resume(engine)]),
            Self::Exec => {
                let mut command = container.verb(&["exec"]);
                command.args(["/guest-tool", "--help"]);
                command
            }
            Self::Update if podman => container.verb(&["update", "--memory", "300m"]),
            Self::Update => container.verb(&["update", "--memory", "300000000"]),
            Self::Kill if podman => container.verb(&["kill"]),
            Self::Kill => {
                let mut command = container.verb(&["kill"]);
                command.arg("KILL");
                command
            }
            Self::Stop if podman => container.verb(&["stop", "-t", "1"]),
            Self::Stop => {
                let mut command = container.verb(&["kill"]);
                command.arg("TERM");
                command
            }
            Self::Checkpoint => container.checkpoint(Way::Bare, "second", Kind::default())?,
            Self::FreezeScope => systemctl("freeze", &scope),
            Self::ThawScope => systemctl("thaw", &scope),
            Self::FreezeSlice => systemctl("freeze", slice),
        })
    }
}

pub(super) fn of(engine: Engine, hierarchy: Hierarchy, guest: &str) -> Result<()> {
    if !engine.can_checkpoint()? {
        return Ok(());
    }
    for way in [Way::Automatic, Way::Run] {
        way.prepare()?;
        for trouble in Trouble::ALL {
            let what = || format!("{}, {}", way.name(), trouble.name());
            let (outcome, says) = one(engine, hierarchy, way, trouble).with_context(what)?;
            let title = engine.title();
            let cells = [guest, title, way.name(), trouble.name(), outcome, &says];
            say_row("trouble", &cells);
        }
    }
    Ok(())
}

/// How long an attempt may take before it is one that waits.
const PATIENCE: Duration = Duration::from_secs(8);

/// What came of the attempt, and the last line of what it said. The checkpoint has to be
/// good: everything is refused at `enforce`.
fn one(
    engine: Engine,
    hierarchy: Hierarchy,
    way: Way,
    trouble: Trouble,
) -> Result<(&'static str, String)> {
    let container = Container::start(engine, hierarchy)?;
    // Whatever asks the engine comes first: a checkpoint is quick.
    let mut attempt = trouble.command(&container)?;
    let status = PathBuf::from(format!("/proc/{}/status", container.pid()?));
    let freezer = container.cgroup()?.join(hierarchy.file());
    let mut checkpoint =
        Process::spawn(&mut container.checkpoint(way, "image", Kind::default())?)?;
    checkpoint.close_input();
    let criu = hold(&status, &freezer, hierarchy, &mut checkpoint)?;
    let guard = armed(way)?;
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
    let checkpoint = checkpoint.wait(LONG)?;
    let attempt = attempt.wait(LONG)?;

    let outcome = match (waits, attempt.code) {
        (true, 0) => "waits, then works",
        (true, _) => "waits, then fails",
        (false, 0) => "works",
        (false, _) => "is refused",
    };
    let report = || format!("the attempt {attempt:?}, the checkpoint {checkpoint:?}");
    expect_good(way, &guard, &checkpoint).with_context(report)?;
    settle(&container, &since).with_context(report)?;
    Ok((outcome, last_line(&attempt, &container.id)))
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

/// That it came to a good end, and nobody got past its guard.
fn expect_good(way: Way, guard: &Value, checkpoint: &Finished) -> Result<()> {
    ensure!(checkpoint.code == 0, "it failed, or was violated");
    within(LONG, "the guard goes", || Ok(guards()?.is_empty()))?;
    if way == Way::Automatic {
        let mut last = Value::Null;
        eventually("its guard is remembered", || {
            last = last_guard().unwrap_or_default();
            Ok(last["id"] == guard["id"])
        })?;
        ensure!(!is_violated(&last), "{last}");
    }
    Ok(())
}

/// That the image can be restored, and that the container is in a state that its engine
/// agrees with.
fn settle(container: &Container, since: &[u64]) -> Result<()> {
    let status = container.status()?;
    ensure!(
        matches!(status.as_deref(), None | Some("exited" | "stopped")),
        "after its checkpoint its engine says {status:?}"
    );
    container.restore("image").context("restore")?;
    let status = container.status()?;
    ensure!(
        status.as_deref() == Some("running"),
        "restored, it is {status:?}"
    );
    container.counters().expect_counting_from(since)?;
    // Nothing is stuck, and nothing is left of the guard.
    let mut exec = container.verb(&["exec"]);
    exec.args(["/guest-tool", "--help"]);
    run(&mut exec)?.expect(0)?;
    for verb in ["pause", resume(container.engine)] {
        run(&mut container.verb(&[verb]))?.expect(0)?;
    }
    container.counters().expect_counting_from(since)
}

fn is_criu(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim() == "criu")
}

/// Stops CRIU once it has seized the tasks and thawed their cgroup.
pub(super) fn hold(
    status: &Path,
    freezer: &Path,
    hierarchy: Hierarchy,
    checkpoint: &mut Process,
) -> Result<i32> {
    let tracer = || -> Option<i32> {
        let text = fs::read_to_string(status).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))?;
        line.trim().parse().ok().filter(|pid| is_criu(*pid))
    };
    let start = Instant::now();
    loop {
        ensure!(
            !checkpoint.has_ended()?,
            "it has ended before it was held up"
        );
        ensure!(start.elapsed() < LONG, "CRIU does not come");
        if let Some(criu) = tracer()
            && fs::read_to_string(freezer)?.trim() == hierarchy.thawed()
        {
            kill(Pid::from_raw(criu), Signal::SIGSTOP)?;
            return Ok(criu);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The last line, without what differs from run to run.
fn last_line(finished: &Finished, id: &str) -> String {
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
