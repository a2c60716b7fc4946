//! Dumps without a freezer, and tasks that the freezer did not reach.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload},
        process::{LONG, Process, guards, last_guard, status},
        scratch_folder,
        service::{eventually, expect_idle},
    },
    FakeCriu, armed,
    dumps::{by_engine, expect_good},
    sh, write,
};

/// CRIU knows of no freezer. Another container is in the same cgroup.
pub(super) fn without_freezer(hierarchy: Hierarchy) -> Result<()> {
    let [target, elsewhere] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let workload = Workload::start(&[&target], 3)?;
    let other = Workload::start(&[&target], 0)?;
    workload.expect_counting()?;
    let images = scratch_folder("images")?;
    let wait = "inject=openat:delay_enter=10000000";
    let mut command = by_engine(wait, Some(Path::new("inventory.img")));
    command.args(["criu", "dump", "-o", "dump.log", "-v4", "-D"]);
    command.arg(&images).arg("-t").arg(workload.pid.to_string());
    command.args(["--leave-running", "--timeout", "100"]);
    let engine = Process::spawn(&mut command)?;
    let guard = armed()?;
    ensure!(guard["seized"] == true, "{guard}");
    ensure!(guard["state"] == "CHECKPOINTING", "{guard}");
    ensure!(guard["cgroups"][0] == target.text(), "{guard}");
    let state = status(&[&target.text()])?;
    ensure!(state["guard"]["id"] == guard["id"], "{state}");
    // A cgroup below has nothing to do with it.
    let state = status(&[&target.child("below")?.text()])?;
    ensure!(state["guard"].is_null(), "{state}");
    eventually("the tasks are dumped", || {
        Ok(images.join("pstree.img").exists())
    })?;
    target.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    let killed = kill(Pid::from_raw(workload.pid), Signal::SIGKILL);
    ensure!(killed == Err(Errno::EBUSY), "{killed:?}");
    // That one is its owner's.
    other.expect_counting()?;
    elsewhere.expect_allowed("cgroup.procs", &other.pid.to_string())?;
    kill(Pid::from_raw(other.pid), Signal::SIGKILL)?;
    expect_good(engine, &images)?;
    workload.expect_counting()?;
    let last = last_guard()?;
    ensure!(last["denials"]["freeze"] == 1, "{last}");
    ensure!(last["denials"]["kill"] == 1, "{last}");
    for (kind, count) in last["violations"].as_object().context("counts")? {
        ensure!(count == 0, "{kind}: {last}");
    }
    target.expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    target.thaw()?;
    target.kill_all()
}

/// A checkpointer has frozen a cgroup and seizes a task elsewhere.
pub(super) fn stray(hierarchy: Hierarchy) -> Result<()> {
    let [target, elsewhere] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let [own, other] = [&target, &elsewhere].map(|cgroup| Workload::start(&[cgroup], 0));
    let (own, other) = (own?, other?);
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    armed()?;
    let mut seize = |pid: i32| {
        sh(
            &mut criu,
            &format!("echo | guest-tool trace {pid} > /dev/null"),
        )
    };
    seize(own.pid)?;
    let guard = guards()?.pop().unwrap_or_default();
    ensure!(guard["violations"]["freeze"] == 0, "{guard}");
    seize(other.pid)?;
    let guard = guards()?.pop().unwrap_or_default();
    ensure!(guard["violations"]["freeze"] == 1, "{guard}");
    let what = format!(
        "dumps pid {}, which is in none of the guarded cgroups",
        other.pid
    );
    ensure!(guard["violators"][0]["what"] == what, "{guard}");
    sh(&mut criu, &write(&target, hierarchy.thawed()))?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()
}
