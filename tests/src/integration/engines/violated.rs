//! A checkpoint that was violated under an automatic guard: its engine reports a failure, and the
//! container goes on.

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Hierarchy, within},
        process::{LONG, guards, last_guard, run, tool},
        service::eventually,
    },
    Way,
    attempt::{armed, hold},
    container::Container,
    engine::{Ending, Engine, Kind, State},
    life::is_violated,
    truth::Truth,
};

pub(super) fn of(engine: &'static dyn Engine, hierarchy: Hierarchy) -> Result<()> {
    if !engine.can_checkpoint()? {
        return Ok(());
    }
    Way::Automatic.prepare()?;
    let ways = match engine.ending() {
        Ending::Never => &[true][..],
        Ending::Restorable | Ending::Final | Ending::OneWay => &[true, false],
    };
    for leave_running in ways.iter().copied() {
        one(engine, hierarchy, leave_running)
            .with_context(|| format!("leave running: {leave_running}"))?;
    }
    Ok(())
}

fn one(engine: &'static dyn Engine, hierarchy: Hierarchy, leave_running: bool) -> Result<()> {
    let container = Container::start(engine, hierarchy)?;
    let truth = Truth::of(&container)?;
    let pid = container.pid()?;
    let since = container.counters().read()?;
    let kind = Kind {
        leave_running,
        ..Kind::default()
    };
    let (checkpoint, criu) = hold(&container, Way::Automatic, kind)?;
    let guard = armed(Way::Automatic)?;
    // Nothing refuses that.
    tool(["access", "clear_refs", &pid.to_string()])?.expect(0)?;
    kill(Pid::from_raw(criu), Signal::SIGCONT)?;
    let finished = checkpoint.wait(LONG)?;
    ensure!(finished.code != 0, "the checkpoint is called good");
    within(LONG, "the guard goes", || Ok(guards()?.is_empty()))?;
    eventually("its guard is remembered", || {
        Ok(last_guard()?["id"] == guard["id"])
    })?;
    ensure!(is_violated(&last_guard()?), "{}", last_guard()?);
    let goes_on = truth.expect(&container, &State::Running);
    goes_on.with_context(|| finished.stderr.clone())?;
    container.counters().expect_counting_from(&since)?;
    // Nothing of it is in the way of the next one.
    let since = container.counters().read()?;
    let next = engine.restorable();
    run(&mut container.checkpoint(Way::Automatic, "next", next)?)?.expect(0)?;
    if engine.restores() {
        container.restore("next")?;
    }
    container.counters().expect_counting_from(&since)
}
