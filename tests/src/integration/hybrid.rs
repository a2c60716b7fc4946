//! The other hierarchy of a hybrid host: a guard in one covers its tasks in both.

use std::fs;

use anyhow::{Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    process::Held,
};

pub(super) fn list(list: &mut List<'_>) {
    if list.is_hybrid() {
        list.add("cgroup_in_the_other", beside);
        list.add_alone("both_are_told_of_a_move", told);
        list.add("two_pids_in_one_shared_cgroup", two);
        list.add("one_guard_of_both", both);
        list.add("no_cgroup_in_the_other", none);
        list.add("frozen_in_the_other", frozen);
    }
}

/// Nobody can freeze it or a cgroup above it, and nobody moves the tasks unnoticed. Other tasks come
/// and go.
fn beside(hierarchy: Hierarchy) -> Result<()> {
    let session = Cgroup::new(hierarchy.other())?;
    let shared = session.child("shared")?;
    let (target, elsewhere) = (Cgroup::new(hierarchy)?, Cgroup::new(shared.hierarchy)?);
    let workload = Workload::start(&[&target, &shared], 1)?;
    let bystander = Workload::start(&[&shared], 0)?;
    let mut held = Held::new(&[&target])?;
    for cgroup in [&shared, &session] {
        for value in [cgroup.hierarchy.frozen(), cgroup.hierarchy.thawed()] {
            cgroup.expect_refused(cgroup.hierarchy.file(), value)?;
        }
    }
    if shared.hierarchy.has_kill() {
        shared.expect_refused("cgroup.kill", "1")?;
    }
    for cgroup in [&elsewhere, &shared] {
        cgroup.expect_allowed("cgroup.procs", &bystander.pid.to_string())?;
    }
    bystander.expect_counting()?;
    held.thaw(&target)?;
    expect_move(held, &workload, &elsewhere)?;
    shared.freeze()?;
    shared.thaw()
}

/// Tries to move the workload away in the other hierarchy, and ends the guard.
fn expect_move(held: Held, workload: &Workload, elsewhere: &Cgroup) -> Result<()> {
    let pid = workload.pid.to_string();
    match elsewhere.hierarchy {
        Hierarchy::V1 => {
            elsewhere.expect_refused("cgroup.procs", &pid)?;
            held.release()?.expect(0)?.says("refused")?;
        }
        // There the kernel does not say which task is to be moved.
        Hierarchy::V2 => {
            elsewhere.expect_allowed("cgroup.procs", &pid)?;
            let to = elsewhere.text();
            let violated = held.release()?.expect(73)?;
            violated.says(&format!("moved pid {pid} to {to}"))?;
        }
    }
    elsewhere.expect_allowed("cgroup.procs", &pid)
}

/// The guard in each hierarchy counts the move of its task, also if the task comes into the target
/// of the other.
fn told(hierarchy: Hierarchy) -> Result<()> {
    let [one, other] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy.other())?];
    let workload = Workload::start(&[&one], 0)?;
    let mut command = Held::command(&[&one]);
    let mut first = Held::start(command.args(["--level", "detect"]))?;
    first.wait_held()?;
    let mut command = Held::command(&[&other]);
    let mut second = Held::start(command.args(["--level", "detect"]))?;
    second.wait_held()?;
    first.thaw(&one)?;
    other.expect_allowed("cgroup.procs", &workload.pid.to_string())?;
    for held in [first, second] {
        held.release()?.expect(73)?.says(&other.text())?;
    }
    Ok(())
}

/// The cgroups of the same tasks in each hierarchy are one container, and one freezer stops it.
fn both(hierarchy: Hierarchy) -> Result<()> {
    let [one, other] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy.other())?];
    let workload = Workload::start(&[&one, &other], 1)?;
    let held = Held::new(&[&one, &other])?;
    for cgroup in [&one, &other] {
        for value in [cgroup.hierarchy.frozen(), cgroup.hierarchy.thawed()] {
            cgroup.expect_refused(cgroup.hierarchy.file(), value)?;
        }
    }
    held.release()?.expect(0)?;
    workload.expect_counting()?;
    let _more = Workload::start(&[&one], 0)?;
    let held = Held::start(&mut Held::command(&[&one, &other]))?;
    held.release()?
        .expect(64)?
        .says("share some of their tasks")?;
    workload.expect_counting()
}

/// Neither is in the way of the other, nor of this process, which is there too.
fn two(hierarchy: Hierarchy) -> Result<()> {
    let shared = Cgroup::new(hierarchy.other())?;
    let [one, other] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let workloads = [
        Workload::start(&[&one, &shared], 1)?,
        Workload::start(&[&other, &shared], 1)?,
    ];
    let here = Here::new(&shared)?;
    let begin = |workload: &Workload| {
        let mut command = Held::command(&[]);
        let mut held = Held::start(command.args(["--pid", &workload.pid.to_string()]))?;
        held.wait_held()?;
        Ok::<_, anyhow::Error>(held)
    };
    let held = [begin(&workloads[0])?, begin(&workloads[1])?];
    shared.expect_refused(shared.hierarchy.file(), shared.hierarchy.frozen())?;
    for cgroup in [&one, &other] {
        ensure!(
            cgroup.state()? == "FROZEN",
            "{} is not FROZEN",
            cgroup.text()
        );
        cgroup.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    }
    for held in held {
        held.release()?.expect(0)?;
    }
    drop(here);
    for workload in workloads {
        workload.expect_counting()?;
    }
    Ok(())
}

/// This process is in a cgroup while this lives, and then in the root.
struct Here(Hierarchy);

impl Here {
    fn new(cgroup: &Cgroup) -> Result<Self> {
        cgroup.expect_allowed("cgroup.procs", "0")?;
        Ok(Self(cgroup.hierarchy))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let root = self.0.root().join("cgroup.procs");
        fs::write(root, "0").expect("every process may be in the root");
    }
}

/// The tasks are in the root there.
fn none(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy.other())?;
    let workload = Workload::start(&[&target], 1)?;
    let held = Held::new(&[&target])?;
    expect_move(held, &workload, &elsewhere)?;
    workload.expect_counting()
}

/// A thaw of the target would not wake the tasks.
fn frozen(hierarchy: Hierarchy) -> Result<()> {
    let other = Cgroup::new(hierarchy.other())?;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target, &other], 1)?;
    other.freeze()?;
    let held = Held::start(&mut Held::command(&[&target]))?;
    held.release()?.expect(75)?.says(&other.text())?;
    ensure!(other.state()? == "FROZEN", "{} is thawed", other.text());
    other.thaw()?;
    workload.expect_counting()
}
