//! A container is checkpointed in each way that its engine has, restored, and
//! checkpointed again.

use std::cell::Cell;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    super::{
        cgroups::Hierarchy,
        process::{Finished, last_guard, run},
        service::eventually,
    },
    Way,
    container::Container,
    engine::{Ending, Engine, Kind, PreDump, State, Verb},
    say_row,
    truth::Truth,
};

pub(super) fn of(engine: &'static dyn Engine, hierarchy: Hierarchy, guest: &str) -> Result<()> {
    let (title, versions) = (engine.title(), engine.versions()?);
    if !engine.can_checkpoint()? {
        let nothing = ["—", "it has no CRIU", "", "", "", ""];
        say_row(
            "life",
            &[&[guest, title], &nothing[..], &[&versions]].concat(),
        );
        let container = Container::start(engine, hierarchy)?;
        let finished = run(&mut container.checkpoint(Way::Bare, "image", Kind::default())?)?;
        ensure!(finished.code != 0, "it can: {finished:?}");
        return Ok(());
    }
    let mut without = None;
    for way in Way::ALL {
        way.prepare()?;
        let is_refused = way == Way::Run && engine.daemon().is_some();
        let life = match is_refused {
            true => refused_under_run(engine, hierarchy),
            false => live(engine, hierarchy, way),
        };
        let life = life.with_context(|| way.name(engine))?;
        let cells = [&[guest, title, way.name(engine)], &life[..], &[&versions]].concat();
        say_row("life", &cells);
        let without = *without.get_or_insert(life);
        ensure!(
            is_refused || life == without,
            "{}: {life:?}, without a guard {without:?}",
            way.name(engine)
        );
    }
    Ok(())
}

/// What became of: a checkpoint that lets it run, a pre-dump and one that builds on it,
/// one of a paused container, one that ends it and its restore, all that again.
fn live(engine: &'static dyn Engine, hierarchy: Hierarchy, way: Way) -> Result<[&'static str; 5]> {
    let life = Life::begin(engine, hierarchy, way)?;
    life.left_running()?;
    let pre_dump = match engine.pre_dump() {
        PreDump::Missing => "—",
        _ => life.pre_dump()?,
    };
    let paused = life.paused()?;
    let life = match engine.checkpoints_restored() {
        true => life,
        false => {
            drop(life);
            Life::begin(engine, hierarchy, way)?
        }
    };
    if !engine.restores() {
        life.left_running()?;
        if engine.ending() == Ending::OneWay {
            life.ended_and_restored()?;
        }
        return Ok(["good", pre_dump, paused, "—", "good"]);
    }
    life.there_and_back("one", Kind::default())?;
    let again = match engine.checkpoints_restored() {
        true => {
            life.there_and_back("two", Kind::default())?;
            "good"
        }
        false => {
            let finished = life.checkpoint("two", Kind::default())?;
            ensure!(finished.code != 0, "it can: {finished:?}");
            life.expect_counting()?;
            "fails"
        }
    };
    if engine.ending() == Ending::Final {
        life.ended()?;
    }
    Ok(["good", pre_dump, paused, "good", again])
}

/// A daemon's CRIU is no descendant of `run`: the guard refuses the freeze of the daemon, and
/// does no harm.
fn refused_under_run(
    engine: &'static dyn Engine,
    hierarchy: Hierarchy,
) -> Result<[&'static str; 5]> {
    let container = Container::start(engine, hierarchy)?;
    let truth = Truth::of(&container)?;
    let kind = Kind {
        leave_running: true,
        ..Kind::default()
    };
    let finished = run(&mut container.checkpoint(Way::Run, "run", kind)?)?;
    ensure!(finished.code != 0, "it is not refused: {finished:?}");
    finished.says("freezer-guard: held ")?;
    truth.expect(&container, &State::Running)?;
    container.counters().expect_counting_from(&[])?;
    // Nothing of it is in the way of the next one, which the service guards.
    run(&mut container.checkpoint(Way::Automatic, "next", kind)?)?.expect(0)?;
    truth.expect(&container, &State::Running)?;
    container.counters().expect_counting_from(&[])?;
    Ok(["is refused", "", "", "", ""])
}

/// A container and its checkpoints.
pub(super) struct Life {
    pub(super) container: Container,
    way: Way,
    /// The id of the last automatic guard.
    seen: Cell<u64>,
}

impl Life {
    pub(super) fn begin(
        engine: &'static dyn Engine,
        hierarchy: Hierarchy,
        way: Way,
    ) -> Result<Self> {
        let seen = last_guard().unwrap_or_default()["id"].as_u64();
        Ok(Self {
            container: Container::start(engine, hierarchy)?,
            way,
            seen: Cell::new(seen.unwrap_or_default()),
        })
    }

    /// A checkpoint, which fails or had the guard that it should have.
    fn checkpoint(&self, name: &str, kind: Kind<'_>) -> Result<Finished> {
        let finished = run(&mut self.container.checkpoint(self.way, name, kind)?)?;
        let freezes = !kind.pre_dump || self.container.engine.pre_dump() == PreDump::Frozen;
        match self.way {
            _ if finished.code != 0 => Ok(finished),
            Way::Bare => Ok(finished),
            // It would have ended with 73 otherwise.
            Way::Run => finished.says("freezer-guard: held "),
            Way::Automatic if !freezes => Ok(finished),
            Way::Automatic => {
                let mut last = Value::Null;
                eventually("a new guard is remembered", || {
                    last = last_guard().unwrap_or_default();
                    Ok(last["id"].as_u64().is_some_and(|id| id != self.seen.get()))
                })?;
                self.seen.set(last["id"].as_u64().unwrap_or_default());
                ensure!(last["automatic"] == true, "{last}");
                ensure!(!is_violated(&last), "{last}");
                // Nobody disturbs, so the engine itself would have been refused.
                let supervisors = self.container.engine.supervisors();
                let is_calm = match supervisors.is_empty() {
                    true => !has_any(&last["denials"]),
                    false => last["intruders"].as_array().is_some_and(|all| {
                        all.iter().all(|one| {
                            let name = one["comm"].as_str().unwrap_or_default();
                            let is_system = name != "systemd" || one["pid"] == 1;
                            supervisors.contains(&name) && is_system && one["protection"] == "kill"
                        })
                    }),
                };
                ensure!(is_calm, "{last}");
                Ok(finished)
            }
        }
    }

    /// A checkpoint that leaves it running.
    pub(super) fn left_running(&self) -> Result<()> {
        let kind = Kind {
            leave_running: true,
            ..Kind::default()
        };
        let truth = Truth::of(&self.container)?;
        self.checkpoint("running", kind)?.expect(0)?;
        truth.expect(&self.container, &State::Running)?;
        self.expect_counting()
    }

    /// A pre-dump, and a checkpoint that builds on it.
    fn pre_dump(&self) -> Result<&'static str> {
        let first = Kind {
            pre_dump: true,
            ..Kind::default()
        };
        let first = self.checkpoint("first", first)?;
        self.expect_counting()?;
        if first.code != 0 {
            eprintln!("pre-dump: {}", first.stderr);
            return Ok("fails");
        }
        let second = Kind {
            parent: Some("first"),
            ..Kind::default()
        };
        self.there_and_back("second", second)?;
        Ok("good")
    }

    /// A checkpoint of a paused container.
    fn paused(&self) -> Result<&'static str> {
        let container = &self.container;
        container.expect(Verb::Pause)?;
        let since = container.counters().read()?;
        let finished = self.checkpoint("paused", container.engine.restorable())?;
        let paused = match finished.code {
            0 => {
                if container.engine.restores() {
                    container.restore("paused")?;
                }
                "good"
            }
            _ => {
                eprintln!("checkpoint of a paused one: {}", finished.stderr);
                "fails"
            }
        };
        if container.state()? == Some(State::Paused) {
            container.expect(Verb::Resume)?;
        }
        Truth::of(container)?.expect(container, &State::Running)?;
        container.counters().expect_counting_from(&since)?;
        Ok(paused)
    }

    /// A checkpoint that ends it if the engine can restore that, and its restore.
    fn there_and_back(&self, name: &str, kind: Kind<'_>) -> Result<()> {
        let container = &self.container;
        let leave_running = container.engine.restorable().leave_running;
        let state = match leave_running {
            true => State::Running,
            false => State::Ended,
        };
        let kind = Kind {
            leave_running,
            ..kind
        };
        let truth = Truth::of(container)?;
        let since = container.counters().read()?;
        self.checkpoint(name, kind)?.expect(0)?;
        truth.expect(container, &state).context("the checkpoint")?;
        container.restore(name)?;
        let restored = Truth::of(container)?.expect(container, &State::Running);
        restored.context("the restore")?;
        container.counters().expect_counting_from(&since)
    }

    /// A checkpoint that ends it.
    fn ended(&self) -> Result<()> {
        let truth = Truth::of(&self.container)?;
        self.checkpoint("ended", Kind::default())?.expect(0)?;
        truth.expect(&self.container, &State::Ended)
    }

    /// A checkpoint that ends it, and a restore by another engine.
    fn ended_and_restored(&self) -> Result<()> {
        let since = self.container.counters().read()?;
        self.ended()?;
        self.container.restore("ended")?;
        self.container.counters().expect_counting_from(&since)
    }

    fn expect_counting(&self) -> Result<()> {
        self.container.counters().expect_counting_from(&[])
    }
}

pub(super) fn is_violated(guard: &Value) -> bool {
    has_any(&guard["violations"])
}

/// Returns whether one of these counts is not 0.
fn has_any(counts: &Value) -> bool {
    let kinds = counts.as_object();
    kinds.is_none_or(|kinds| kinds.values().any(|count| *count != 0))
}
