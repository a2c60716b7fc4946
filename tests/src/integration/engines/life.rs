//! A container is checkpointed in each way that its engine has, restored, and
//! checkpointed again.

use std::cell::Cell;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    super::{
        cgroups::Hierarchy,
        process::{self, Finished, guards},
        service::eventually,
    },
    Way,
    container::{Container, Engine, Kind, finish},
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
        let finished = finish(container.checkpoint(Way::Bare, "image", Kind::default())?)?;
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
    let container = Container::start(engine, hierarchy)?;
    let seen = Cell::new(0);
    let checkpoint = |name: &str, kind: Kind<'_>| -> Result<Finished> {
        let finished = finish(container.checkpoint(way, name, kind)?)?;
        let freezes = !kind.pre_dump || engine.freezes_for_a_pre_dump();
        if finished.code == 0 && freezes {
            expect_guarded(way, &seen).with_context(|| format!("{name}: {finished:?}"))?;
        }
        Ok(finished)
    };
    let counters = || container.counters();
    let ends = |name: &str, kind: Kind<'_>| -> Result<()> {
        let since = counters()?;
        checkpoint(name, kind)?.expect(0)?;
        container.restore(name)?;
        container.expect_counting_from(&since)
    };

    checkpoint(
        "running",
        Kind {
            leave_running: true,
            ..Kind::default()
        },
    )?
    .expect(0)?;
    container.expect_counting_from(&counters()?)?;

    let pre_dump = checkpoint(
        "first",
        Kind {
            pre_dump: true,
            ..Kind::default()
        },
    )?;
    let pre_dump = match pre_dump.code {
        0 => {
            container.expect_counting_from(&counters()?)?;
            ends(
                "second",
                Kind {
                    parent: Some("first"),
                    ..Kind::default()
                },
            )?;
            "good"
        }
        _ => {
            eprintln!("pre-dump: {}", pre_dump.stderr);
            container.expect_counting_from(&counters()?)?;
            "fails"
        }
    };

    container_verb(&container, "pause")?;
    let paused = checkpoint("paused", Kind::default())?;
    let paused = match paused.code {
        0 => {
            let since = counters()?;
            container.restore("paused")?;
            if container.status()?.as_deref() == Some("paused") {
                container_verb(&container, resume(engine))?;
            }
            container.expect_counting_from(&since)?;
            "good"
        }
        _ => {
            eprintln!("checkpoint of a paused one: {}", paused.stderr);
            if container.status()?.as_deref() == Some("paused") {
                container_verb(&container, resume(engine))?;
            }
            container.expect_counting_from(&counters()?)?;
            "fails"
        }
    };

    ends("one", Kind::default())?;
    ends("two", Kind::default())?;
    Ok(["good", pre_dump, paused, "good", "good"])
}

pub(super) fn resume(engine: Engine) -> &'static str {
    match engine.is_podman() {
        true => "unpause",
        false => "resume",
    }
}

fn container_verb(container: &Container, verb: &str) -> Result<()> {
    finish(container.verb(&[verb]))?.expect(0)?;
    Ok(())
}

/// That it had a guard that held, if it should have had one.
fn expect_guarded(way: Way, seen: &Cell<u64>) -> Result<()> {
    match way {
        Way::Bare => {}
        // It would have ended with 73 otherwise.
        Way::Run => ensure!(guards()?.is_empty(), "a guard is left"),
        Way::Automatic => {
            eventually("the guard goes", || Ok(guards()?.is_empty()))?;
            let last = last_guard()?;
            let id = last["id"].as_u64().context("an id")?;
            ensure!(seen.replace(id) != id, "no new guard after {last}");
            ensure!(last["automatic"] == true, "{last}");
            ensure!(!is_violated(&last), "{last}");
        }
    }
    Ok(())
}

pub(super) fn is_violated(guard: &Value) -> bool {
    let violations = guard["violations"].as_object();
    violations.is_none_or(|kinds| kinds.values().any(|count| *count != 0))
}

/// The last one that the service remembers.
pub(super) fn last_guard() -> Result<Value> {
    let said = process::guard(["status", "--last", "--json"])?.expect(0)?;
    let said: Value = serde_json::from_str(&said.stdout)?;
    let last = said["guards"].as_array().and_then(|all| all.last());
    last.cloned().context("no guard is remembered")
}
