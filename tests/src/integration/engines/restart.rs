//! The daemon of an engine is restarted in the middle of a checkpoint: the client that waits
//! for the answer fails, and CRIU goes on.

use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Hierarchy, within},
        process::{LONG, Process, guards},
        service::eventually,
    },
    Way,
    attempt::{PATIENCE, armed, hold, is_criu},
    container::Container,
    engine::{Engine, State, Verb, command},
    say_row,
    truth::Truth,
};

pub(super) fn of(engine: &'static dyn Engine, hierarchy: Hierarchy, guest: &str) -> Result<()> {
    let Some(daemon) = engine.daemon() else {
        return Ok(());
    };
    let attempt = format!("systemctl restart {daemon}");
    for way in [Way::Bare, Way::Automatic] {
        way.prepare()?;
        let (outcome, state) =
            one(engine, hierarchy, way, daemon).with_context(|| way.name(engine))?;
        let cells = [
            guest,
            engine.title(),
            way.name(engine),
            &attempt,
            outcome,
            &state,
        ];
        say_row("trouble", &cells);
    }
    Ok(())
}

/// The outcome of the checkpoint's command, and the state of the container: its engine and the kernel
/// agree, and nothing is stuck.
fn one(
    engine: &'static dyn Engine,
    hierarchy: Hierarchy,
    way: Way,
    daemon: &str,
) -> Result<(&'static str, String)> {
    let container = Container::start(engine, hierarchy)?;
    let truth = Truth::of(&container)?;
    let (checkpoint, criu) = hold(&container, way, engine.restorable())?;
    if way == Way::Automatic {
        armed(way)?;
    }
    let mut restart = Process::spawn(&mut command("systemctl", &["restart", daemon]))?;
    restart.close_input();
    let start = Instant::now();
    within(LONG, "it restarts, or waits", || {
        Ok(restart.has_ended()? || start.elapsed() > PATIENCE)
    })?;
    kill(Pid::from_raw(criu), Signal::SIGCONT)?;
    let restart = restart.wait(LONG)?.expect(0)?;
    let checkpoint = checkpoint.wait(LONG)?;
    within(LONG, "the guard goes", || {
        Ok(way == Way::Bare || guards()?.is_empty())
    })?;
    let report = || format!("the restart {restart:?}, the checkpoint {checkpoint:?}");

    let mut state = None;
    eventually("CRIU has ended", || {
        state = container.state()?;
        Ok(!is_criu(criu))
    })?;
    let state = state.unwrap_or(State::Ended);
    truth.expect(&container, &state).with_context(report)?;
    if state == State::Paused {
        container.expect(Verb::Resume).with_context(report)?;
        truth.expect(&container, &State::Running)?;
    }
    if state != State::Ended {
        container.counters().expect_counting_from(&[])?;
    }
    let outcome = match checkpoint.code {
        0 => "the checkpoint works",
        _ => "the checkpoint fails",
    };
    Ok((
        outcome,
        format!("the container is {state:?}").to_lowercase(),
    ))
}
