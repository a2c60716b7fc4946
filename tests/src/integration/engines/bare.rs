//! The same attempts without a guard, to tell an engine's own faults from a guard's.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Hierarchy, within},
        process::{LONG, run},
    },
    Way,
    attempt::{Disturbed, Trouble, is_criu, last_line, outcome},
    container::Container,
    engine::Engine,
    say_row,
};

/// How long a checkpoint may take before it is one that hangs.
const HANGS: Duration = Duration::from_secs(20);

pub(super) fn of(engine: &'static dyn Engine, hierarchy: Hierarchy, guest: &str) -> Result<()> {
    if !engine.can_checkpoint()? {
        return Ok(());
    }
    Way::Bare.prepare()?;
    for trouble in Trouble::ALL {
        let tried = one(engine, hierarchy, trouble).with_context(|| trouble.name())?;
        let Some((outcome, checkpoint, says)) = tried else {
            continue;
        };
        let title = engine.title();
        let cells = [guest, title, trouble.name(), outcome, checkpoint, &says];
        say_row("bare", &cells);
    }
    Ok(())
}

/// The outcomes of the attempt and of the checkpoint, and the last line that the attempt printed.
fn one(
    engine: &'static dyn Engine,
    hierarchy: Hierarchy,
    trouble: Trouble,
) -> Result<Option<(&'static str, &'static str, String)>> {
    let container = Container::start(engine, hierarchy)?;
    let cgroup = container.cgroup()?;
    let units = container.units()?;
    let Some(mut disturbed) = Disturbed::of(&container, Way::Bare, trouble)? else {
        return Ok(None);
    };
    let ended = within(HANGS, "the checkpoint", || disturbed.checkpoint.has_ended());
    let hangs = ended.is_err();
    if hangs && is_criu(disturbed.criu) {
        kill(Pid::from_raw(disturbed.criu), Signal::SIGKILL)?;
    }
    // Nothing of it may be left for the next one. All of that may be gone.
    let (scope, slice) = units.unzip();
    for unit in scope.into_iter().chain(slice.map(str::to_owned)) {
        let _ = run(Command::new("systemctl").args(["thaw", &unit]))?;
    }
    if hangs {
        let _ = fs::write(cgroup.join(hierarchy.file()), hierarchy.thawed());
    }
    let checkpoint = disturbed.checkpoint.wait(LONG)?;
    let attempt = disturbed.attempt.wait(LONG)?;
    let restored = || {
        container.restore("image")?;
        container.counters().expect_counting_from(&disturbed.since)
    };
    let what = match checkpoint.code {
        _ if hangs => "hangs",
        0 if !engine.restores() => "reports success",
        0 if restored().is_ok() => "is good",
        0 => "cannot be restored",
        _ => "fails",
    };
    let outcome = outcome(disturbed.waits, attempt.code);
    Ok(Some((outcome, what, last_line(&attempt, container.id()))))
}
