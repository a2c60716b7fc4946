//! A checkpoint that was violated under an automatic guard: its engine reports a failure, and the
//! container goes on.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Hierarchy, within},
        process::{LONG, Process, guards, last_guard, run, tool},
        service::eventually,
    },
    Way,
    container::{Container, Engine, Kind},
    life::is_violated,
    trouble::{armed, hold},
};

pub(super) fn of(engine: Engine, hierarchy: Hierarchy) -> Result<()> {
    if !engine.can_checkpoint()? {
        return Ok(());
    }
    Way::Automatic.prepare()?;
    for leave_running in [true, false] {
        one(engine, hierarchy, leave_running)
            .with_context(|| format!("leave running: {leave_running}"))?;
    }
    Ok(())
}

fn one(engine: Engine, hierarchy: Hierarchy, leave_running: bool) -> Result<()> {
    let container = Container::start(engine, hierarchy)?;
    let pid = container.pid()?;
    let status = PathBuf::from(format!("/proc/{pid}/status"));
    let freezer = container.cgroup()?.join(hierarchy.file());
    let since = container.counters().read()?;
    let kind = Kind {
        leave_running,
        ..Kind::default()
    };
    let mut checkpoint = container.checkpoint(Way::Automatic, "violated", kind)?;
    let mut checkpoint = Process::spawn(&mut checkpoint)?;
    checkpoint.close_input();
    let criu = hold(&status, &freezer, hierarchy, &mut checkpoint)?;
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
    let status = container.status()?;
    ensure!(
        status.as_deref() == Some("running"),
        "its engine says {status:?}: {}",
        finished.stderr
    );
    container.counters().expect_counting_from(&since)?;
    // Nothing of it is in the way of the next one.
    let since = container.counters().read()?;
    run(&mut container.checkpoint(Way::Automatic, "next", Kind::default())?)?.expect(0)?;
    container.restore("next")?;
    container.counters().expect_counting_from(&since)
}
