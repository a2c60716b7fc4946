//! Somebody, the engine itself perhaps, gets at a container in the middle of its
//! checkpoint.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    super::{
        cgroups::{Hierarchy, within},
        process::{LONG, guards, last_guard},
        service::eventually,
    },
    Way,
    attempt::{Disturbed, Trouble, last_line, outcome},
    container::Container,
    engine::{Ending, Engine, State, Verb},
    life::is_violated,
    say_row,
    truth::Truth,
};

pub(super) fn of(engine: &'static dyn Engine, hierarchy: Hierarchy, guest: &str) -> Result<()> {
    if !engine.can_checkpoint()? {
        return Ok(());
    }
    let ways = match engine.daemon() {
        Some(_) => &[Way::Automatic][..],
        None => &[Way::Automatic, Way::Run],
    };
    for way in ways.iter().copied() {
        way.prepare()?;
        for trouble in Trouble::ALL {
            let what = || format!("{}, {}", way.name(engine), trouble.name());
            let container = Container::start(engine, hierarchy)?;
            let tried = disturb(&container, way, trouble).with_context(what)?;
            let Some((outcome, says)) = tried else {
                continue;
            };
            let title = engine.title();
            let cells = [
                guest,
                title,
                way.name(engine),
                trouble.name(),
                outcome,
                &says,
            ];
            say_row("trouble", &cells);
        }
    }
    Ok(())
}

/// What came of the attempt, and the last line of what it said. The checkpoint has to be
/// good: everything is refused at `enforce`.
pub(super) fn disturb(
    container: &Container,
    way: Way,
    trouble: Trouble,
) -> Result<Option<(&'static str, String)>> {
    let truth = Truth::of(container)?;
    let Some(disturbed) = Disturbed::of(container, way, trouble)? else {
        return Ok(None);
    };
    let (guard, since) = (disturbed.guard, disturbed.since);
    let checkpoint = disturbed.checkpoint.wait(LONG)?;
    let attempt = disturbed.attempt.wait(LONG)?;
    let report = || format!("the attempt {attempt:?}, the checkpoint {checkpoint:?}");
    if trouble == Trouble::Checkpoint && !container.engine.bears_a_second_checkpoint() {
        ensure!(checkpoint.code != 0, "it bears one: {}", report());
        expect_kept(way, &guard).with_context(report)?;
        truth
            .expect(container, &State::Running)
            .with_context(report)?;
        container.counters().expect_counting_from(&since)?;
        let says = last_line(&attempt, container.id());
        return Ok(Some(("fails, and so does the first", says)));
    }
    ensure!(
        checkpoint.code == 0,
        "it failed, or was violated: {}",
        report()
    );
    expect_kept(way, &guard).with_context(report)?;
    settle(container, &truth, trouble, &since).with_context(report)?;
    let outcome = outcome(disturbed.waits, attempt.code);
    Ok(Some((outcome, last_line(&attempt, container.id()))))
}

/// That the guard has ended, and nobody got past it.
fn expect_kept(way: Way, guard: &Value) -> Result<()> {
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

/// That the container is in a state that its engine and the kernel agree on, and that the
/// image can be restored.
fn settle(container: &Container, truth: &Truth, trouble: Trouble, since: &[u64]) -> Result<()> {
    let state = match container.engine.ending() {
        Ending::Restorable => State::Ended,
        Ending::Final | Ending::Never | Ending::OneWay => {
            container.state()?.unwrap_or(State::Ended)
        }
    };
    truth.expect(container, &state).context("after it")?;
    ensure!(
        container.engine.ending() == Ending::Restorable || trouble.may_leave(&state),
        "after its checkpoint its engine says {state:?}"
    );
    if container.engine.restores() {
        container.restore("image").context("restore")?;
    } else if state == State::Paused {
        container.expect(Verb::Resume)?;
    } else if state == State::Ended {
        return Ok(());
    }
    let restored = Truth::of(container)?;
    restored.expect(container, &State::Running)?;
    container.counters().expect_counting_from(since)?;
    // Nothing is stuck, and nothing is left of the guard.
    for verb in [Verb::Exec, Verb::Pause, Verb::Resume] {
        container.expect(verb)?;
    }
    restored.expect(container, &State::Running)?;
    container.counters().expect_counting_from(since)
}
