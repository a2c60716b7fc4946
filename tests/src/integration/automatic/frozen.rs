//! Checkpointers that are killed between their freeze and their thaw.

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload},
        process::{Process, guards, last_guard, tool},
        service::{eventually, expect_idle, journal, main_pid, systemctl},
        varlink::SOCKET,
    },
    FakeCriu, armed, sh, write,
};

/// Starts a checkpointer that writes these values.
fn start(target: &Cgroup, values: &[&str]) -> Result<Process> {
    let mut criu = FakeCriu::new()?.start()?;
    for value in values {
        sh(&mut criu, &write(target, value))?;
    }
    armed()?;
    Ok(criu)
}

fn kill_it(criu: &mut Process) -> Result<()> {
    criu.signal(Signal::SIGKILL)?;
    criu.close_input();
    Ok(())
}

pub(super) fn is_thawed(hierarchy: Hierarchy) -> Result<()> {
    // Its counters start anew.
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut criu = start(&target, &[hierarchy.frozen()])?;
    ensure!(guards()?[0]["froze"] == true, "{:?}", guards()?);
    kill_it(&mut criu)?;
    eventually("it is thawed", || Ok(target.state()? == "THAWED"))?;
    workload.expect_counting()?;
    expect_idle()?;
    let words = format!("thawed {}", target.text());
    eventually("it is logged", || Ok(journal()?.contains(&words)))?;
    let metrics = tool(["varlink", SOCKET, "io.freezerguard.Metrics"])?;
    let counted = r"freezer_guard_thawed_total 1\n";
    ensure!(metrics.stdout.contains(counted), "{}", metrics.stdout);
    Ok(())
}

/// An engine pauses the container before the service has thawed it.
pub(super) fn is_paused_since(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut criu = start(&target, &[hierarchy.frozen()])?;
    let id = guards()?[0]["id"].clone();
    let service = main_pid()?;
    kill(service, Signal::SIGSTOP)?;
    kill_it(&mut criu)?;
    eventually("the guard ends", || Ok(target.freeze().is_ok()))?;
    kill(service, Signal::SIGCONT)?;
    eventually("its end is known", || Ok(last_guard()?["id"] == id))?;
    ensure!(target.state()? == "FROZEN", "left {}", target.state()?);
    expect_idle()?;
    target.thaw()
}

/// A paused container: the checkpointer thaws it, and freezes it again.
pub(super) fn was_paused_before(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    target.freeze()?;
    let mut criu = start(&target, &[hierarchy.thawed(), hierarchy.frozen()])?;
    let id = guards()?[0]["id"].clone();
    kill_it(&mut criu)?;
    eventually("its end is known", || Ok(last_guard()?["id"] == id))?;
    ensure!(target.state()? == "FROZEN", "left {}", target.state()?);
    expect_idle()?;
    target.thaw()
}

/// A checkpointer that thaws what it froze leaves nothing to do.
pub(super) fn thaws_itself(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut criu = start(&target, &[hierarchy.frozen(), hierarchy.thawed()])?;
    ensure!(guards()?[0]["froze"] == false, "{:?}", guards()?);
    kill_it(&mut criu)?;
    expect_idle()
}
