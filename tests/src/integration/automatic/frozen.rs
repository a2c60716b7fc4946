//! Checkpointers that are killed between their freeze and their thaw.

use anyhow::{Result, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload},
        process::{LONG, Process, guards, last_guard, tool},
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
    let counted = r#"freezer_guard_thawed_total{reason=\"killed\"} 1\n"#;
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

/// An engine has paused the container. The checkpointer reads that, and writes no freezer before it
/// has seized the tasks.
pub(super) fn is_guarded_where_paused(hierarchy: Hierarchy) -> Result<()> {
    let [target, other] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let workload = Workload::start(&[&target], 1)?;
    for paused in [&target, &other] {
        paused.freeze()?;
    }
    let mut criu = FakeCriu::new()?.start()?;
    // A program that the checkpointer starts is none.
    let read = |cgroup: &Cgroup| format!("read -r _ < {}", cgroup.freezer().display());
    sh(
        &mut criu,
        &format!("cat {} > /dev/null", target.freezer().display()),
    )?;
    ensure!(guards()?.is_empty(), "{:?}", guards()?);
    for cgroup in [&target, &other] {
        sh(&mut criu, &read(cgroup))?;
    }
    let guard = armed()?;
    ensure!(guard["state"] == "CHECKPOINTING", "{guard}");
    // It does not dump a cgroup that it reads later.
    ensure!(
        guard["cgroups"] == serde_json::json!([target.text()]),
        "{guard}"
    );
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    let killed = kill(Pid::from_raw(workload.pid), Signal::SIGKILL);
    ensure!(killed == Err(Errno::EBUSY), "{killed:?}");
    other.thaw()?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()?;
    ensure!(target.state()? == "FROZEN", "left {}", target.state()?);
    target.thaw()?;
    workload.expect_counting()
}

/// A checkpointer that thaws what it froze leaves nothing to do.
pub(super) fn thaws_itself(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut criu = start(&target, &[hierarchy.frozen(), hierarchy.thawed()])?;
    let id = guards()?[0]["id"].clone();
    kill_it(&mut criu)?;
    eventually("its end is known", || Ok(last_guard()?["id"] == id))?;
    let words = format!("thawed {}", target.text());
    ensure!(!journal()?.contains(&words), "{}", journal()?);
    expect_idle()
}

/// A checkpointer that ends by itself has left the cgroup frozen on purpose, as the restore of a
/// paused container does.
pub(super) fn exits(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut criu = start(&target, &[hierarchy.frozen()])?;
    let id = guards()?[0]["id"].clone();
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    eventually("its end is known", || Ok(last_guard()?["id"] == id))?;
    expect_idle()?;
    ensure!(target.state()? == "FROZEN", "left {}", target.state()?);
    target.thaw()
}

/// An engine tries again before the service has thawed what the first checkpointer left.
pub(super) fn is_tried_again(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut first = start(&target, &[hierarchy.frozen()])?;
    let service = main_pid()?;
    kill(service, Signal::SIGSTOP)?;
    kill_it(&mut first)?;
    first.wait(LONG)?;
    let mut second = FakeCriu::new()?.start()?;
    for value in [hierarchy.thawed(), hierarchy.frozen()] {
        sh(&mut second, &write(&target, value))?;
    }
    kill(service, Signal::SIGCONT)?;
    armed()?;
    ensure!(target.state()? == "FROZEN", "it is {}", target.state()?);
    kill_it(&mut second)?;
    eventually("it is thawed", || Ok(target.state()? == "THAWED"))?;
    expect_idle()
}
