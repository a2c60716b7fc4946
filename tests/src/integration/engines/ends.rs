//! The container comes to its end in the middle of its checkpoint: its engine removes it, systemd
//! stops it, or the kernel kills it for the memory that it takes; or it ends and has to start
//! again. Afterwards nothing is stuck.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    super::{
        cgroups::{Hierarchy, within},
        process::{LONG, Process, guards, last_guard, run},
        service::{eventually, systemctl},
    },
    Way,
    attempt::{PATIENCE, armed, hold, is_criu, outcome},
    container::Container,
    engine::{Engine, State, Verb, command},
    life::is_violated,
    say_row,
    truth::Truth,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Remove,
    StopScope,
    StopSlice,
    /// A limit below what the tasks take.
    OutOfMemory,
    /// The engine starts again what has ended.
    RestartAlways,
}

impl End {
    const ALL: [Self; 5] = [
        Self::Remove,
        Self::StopScope,
        Self::StopSlice,
        Self::OutOfMemory,
        Self::RestartAlways,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Remove => "rm -f",
            Self::StopScope => "systemctl stop SCOPE",
            Self::StopSlice => "systemctl stop SLICE",
            Self::OutOfMemory => "out of memory",
            Self::RestartAlways => "kill, and restart always",
        }
    }

    /// The attempt, unless there is no such thing.
    fn command(self, container: &Container, guest: &str) -> Result<Option<Command>> {
        if self == Self::Remove {
            return Ok(container.verb(Verb::Remove));
        }
        if self == Self::RestartAlways {
            let Some(mut policy) = container.verb(Verb::RestartAlways) else {
                return Ok(None);
            };
            run(&mut policy)?.expect(0)?;
            return Ok(container.verb(Verb::Kill));
        }
        if self == Self::OutOfMemory {
            // With a hybrid layout the limit is elsewhere.
            if guest.ends_with("hybrid") {
                return Ok(None);
            }
            let mut shell = command("sh", &["-c", "echo 16384 > \"$1\"", "sh"]);
            shell.arg(container.cgroup()?.join("memory.max"));
            return Ok(Some(shell));
        }
        let Some((scope, slice)) = container.units()? else {
            return Ok(None);
        };
        let unit = match self {
            Self::StopScope => &*scope,
            _ => slice,
        };
        Ok(Some(command("systemctl", &["stop", unit])))
    }
}

/// How long systemd waits before it kills what has not stopped.
const STOPS: Duration = Duration::from_secs(10);

pub(super) fn of(engine: &'static dyn Engine, hierarchy: Hierarchy, guest: &str) -> Result<()> {
    if !engine.can_checkpoint()? {
        return Ok(());
    }
    let _stops = ShortStops::new()?;
    for way in [Way::Bare, Way::Automatic] {
        way.prepare()?;
        for end in End::ALL {
            let tried = one(engine, (hierarchy, guest), way, end)
                .with_context(|| format!("{}, {}", way.name(engine), end.name()))?;
            let Some([outcome, checkpoint, state]) = tried else {
                continue;
            };
            let title = engine.title();
            let cells = [
                guest,
                title,
                way.name(engine),
                end.name(),
                outcome,
                checkpoint,
            ];
            say_row("ends", &[&cells[..], &[state]].concat());
        }
    }
    Ok(())
}

/// The outcomes of the attempt and of the checkpoint's command, and the state that engine and
/// kernel agree on afterwards.
fn one(
    engine: &'static dyn Engine,
    (hierarchy, guest): (Hierarchy, &str),
    way: Way,
    end: End,
) -> Result<Option<[&'static str; 3]>> {
    let container = Container::start(engine, hierarchy)?;
    let truth = Truth::of(&container)?;
    let Some(mut attempt) = end.command(&container, guest)? else {
        return Ok(None);
    };
    let (checkpoint, criu) = hold(&container, way, engine.restorable())?;
    let guard = match way {
        Way::Bare => Value::Null,
        _ => armed(way)?,
    };
    let mut attempt = Process::spawn(&mut attempt)?;
    attempt.close_input();
    let waits = within(PATIENCE, "the attempt", || attempt.has_ended()).is_err();
    if is_criu(criu) {
        kill(Pid::from_raw(criu), Signal::SIGCONT)?;
    }
    let checkpoint = checkpoint.wait(LONG)?;
    let attempt = attempt.wait(LONG + STOPS)?;
    let report = || format!("the attempt {attempt:?}, the checkpoint {checkpoint:?}");
    if way == Way::Automatic {
        expect_honest(&guard, end, checkpoint.code == 0).with_context(report)?;
    }

    let mut state = State::Ended;
    let mut why = String::new();
    let agree = eventually("CRIU has ended, and engine and kernel agree", || {
        state = container.state()?.unwrap_or(State::Ended);
        why = truth.complaint(&container, &state)?;
        Ok(!is_criu(criu) && why.is_empty())
    });
    agree.with_context(|| format!("{why}: {}", report()))?;
    if state == State::Paused {
        container.expect(Verb::Resume).with_context(report)?;
        truth.expect(&container, &State::Running)?;
    }
    if state != State::Ended {
        container.counters().expect_counting_from(&[])?;
    }
    let state = match state {
        State::Running => "runs",
        State::Paused => "is paused, and can be resumed",
        State::Ended => "has ended",
        State::Other(other) => anyhow::bail!("the container is {other}: {}", report()),
    };
    let checkpoint = match checkpoint.code {
        0 => "works",
        _ => "fails",
    };
    Ok(Some([outcome(waits, attempt.code), checkpoint, state]))
}

/// The guard has ended. A checkpoint in which a task died is not called good.
fn expect_honest(guard: &Value, end: End, is_good: bool) -> Result<()> {
    within(LONG, "the guard goes", || Ok(guards()?.is_empty()))?;
    let mut last = Value::Null;
    eventually("its guard is remembered", || {
        last = last_guard().unwrap_or_default();
        Ok(last["id"] == guard["id"])
    })?;
    ensure!(
        !(is_good && is_violated(&last)),
        "it is called good: {last}"
    );
    ensure!(
        is_violated(&last) == (end == End::OutOfMemory),
        "only the kernel gets at it: {last}"
    );
    Ok(())
}

/// While it is there, systemd waits less than 90 s.
struct ShortStops;

impl ShortStops {
    const FILE: &str = "/run/systemd/system/scope.d/stops.conf";

    fn new() -> Result<Self> {
        let file = Path::new(Self::FILE);
        fs::create_dir_all(file.parent().context("a directory")?)?;
        let stops = format!("[Scope]\nTimeoutStopSec={}\n", STOPS.as_secs());
        fs::write(file, stops)?;
        systemctl(&["daemon-reload"])?.expect(0)?;
        Ok(Self)
    }
}

impl Drop for ShortStops {
    fn drop(&mut self) {
        let _ = fs::remove_file(Self::FILE);
        let _ = systemctl(&["daemon-reload"]);
    }
}
