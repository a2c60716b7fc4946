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
    container::{Container, Engine, Kind},
    say_row,
};

pub(super) fn of(engine: Engine, hierarchy: Hierarchy, guest: &str) -> Result<()> {
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
        let life = live(engine, hierarchy, way).with_context(|| way.name())?;
        let cells = [&[guest, title, way.name()], &life[..], &[&versions]].concat();
        say_row("life", &cells);
        let without = *without.get_or_insert(life);
        ensure!(
            life == without,
            "{}: {life:?}, without a guard {without:?}",
            way.name()
        );
    }
    Ok(())
}

/// What became of: a checkpoint that lets it run, a pre-dump and one that builds on it,
/// one of a paused container, one that ends it and its restore, all that again.
fn live(engine: Engine, hierarchy: Hierarchy, way: Way) -> Result<[&'static str; 5]> {
    let life = Life {
        container: Container::start(engine, hierarchy)?,
        way,
        seen: Cell::new(0),
    };
    let running = Kind {
        leave_running: true,
        ..Kind::default()
    };
    life.checkpoint("running", running)?.expect(0)?;
    life.expect_counting()?;

    let first = Kind {
        pre_dump: true,
        ..Kind::default()
    };
    let first = life.checkpoint("first", first)?;
    life.expect_counting()?;
    let pre_dump = match first.code {
        0 => {
            let second = Kind {
                parent: Some("first"),
                ..Kind::default()
            };
            life.there_and_back("second", second)?;
            "good"
        }
        _ => {
            eprintln!("pre-dump: {}", first.stderr);
            "fails"
        }
    };

    let container = &life.container;
    run(&mut container.verb(&["pause"]))?.expect(0)?;
    let since = container.counters().read()?;
    let finished = life.checkpoint("paused", Kind::default())?;
    let paused = match finished.code {
        0 => {
            container.restore("paused")?;
            "good"
        }
        _ => {
            eprintln!("checkpoint of a paused one: {}", finished.stderr);
            "fails"
        }
    };
    if container.status()?.as_deref() == Some("paused") {
        run(&mut container.verb(&[resume(engine)]))?.expect(0)?;
    }
    container.counters().expect_counting_from(&since)?;

    life.there_and_back("one", Kind::default())?;
    life.there_and_back("two", Kind::default())?;
    Ok(["good", pre_dump, paused, "good", "good"])
}

struct Life {
    container: Container,
    way: Way,
    /// The id of the last automatic guard.
    seen: Cell<u64>,
}

impl Life {
    /// A checkpoint, which fails or had the guard that it should have.
    fn checkpoint(&self, name: &str, kind: Kind<'_>) -> Result<Finished> {
        let finished = run(&mut self.container.checkpoint(self.way, name, kind)?)?;
        let freezes = !kind.pre_dump || self.container.engine.freezes_for_a_pre_dump();
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
                Ok(finished)
            }
        }
    }

    /// A checkpoint that ends it, and its restore.
    fn there_and_back(&self, name: &str, kind: Kind<'_>) -> Result<()> {
        let since = self.container.counters().read()?;
        self.checkpoint(name, kind)?.expect(0)?;
        self.container.restore(name)?;
        self.container.counters().expect_counting_from(&since)
    }

    fn expect_counting(&self) -> Result<()> {
        self.container.counters().expect_counting_from(&[])
    }
}

pub(super) fn resume(engine: Engine) -> &'static str {
    match engine.is_podman() {
        true => "unpause",
        false => "resume",
    }
}

pub(super) fn is_violated(guard: &Value) -> bool {
    let violations = guard["violations"].as_object();
    violations.is_none_or(|kinds| kinds.values().any(|count| *count != 0))
}
