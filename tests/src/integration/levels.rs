//! How far a guard goes on this host, how far it has to, and that what gets past
//! it is noticed at every level.

pub(super) mod crowds;

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, eventually},
    has_bpf,
    lifecycle::expect_clean,
    process::{Finished, Held, LONG, Process, guard, guards, run, tool},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("is_told", told);
}

/// Each level.
pub(super) fn list_each(list: &mut List<'_>) {
    list.add("required", required);
    list.add("detect_refuses_nothing_and_tells", detect);
    list.add("a_lower_one_waits_for_a_higher", busy);
    list.add("one_that_was_left_decides_nothing", left);
    if list.hierarchy == Hierarchy::V2 {
        list.add("detect_notices_a_clone_out", clone_out);
    }
}

/// A task of the target starts one elsewhere.
fn clone_out(hierarchy: Hierarchy) -> Result<()> {
    let (target, outside) = (Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?);
    let mut inside = Process::spawn(Command::new("bash").args([
        "-c",
        "echo $$ > \"$1/cgroup.procs\"; echo ready; read -r x; guest-tool clone-into \"$2\"",
        "bash",
        &target.text(),
        &outside.text(),
    ]))?;
    inside.expect_line("ready")?;
    let mut held = held_at(&target, "detect")?;
    held.thaw(&target)?;
    inside.tell("go")?;
    inside.wait(LONG)?.expect(0)?;
    let guard = guards()?.remove(0);
    ensure!(guard["violations"]["migrate"] == 1, "{guard}");
    held.release()?.expect(73)?.says("out of")?;
    expect_clean()
}

/// The strongest level that this boot has.
pub(super) fn strongest() -> Result<&'static str> {
    Ok(if has_bpf()? { "enforce" } else { "best-effort" })
}

/// A guard of at most this level.
fn held_at(target: &Cgroup, level: &str) -> Result<Held> {
    let mut held = Held::start(Held::command(&[target]).args(["--level", level]))?;
    held.wait_held()?;
    Ok(held)
}

fn told(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let level = strongest()?;
    let held = Held::new(&[&target])?;
    let told = &guards()?[0];
    ensure!(told["level"] == level, "{told}");
    for protection in ["freeze", "kill", "migrate", "ptrace"] {
        ensure!(told["levels"][protection] == level, "{told}");
    }
    ensure!(
        guard(["status"])?.stdout.contains(&format!("({level})")),
        "`status` does not say {level}"
    );
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    let finished = held.release()?.expect(0)?;
    finished.says(&format!("guarding {} ({level})", target.text()))?;
    expect_clean()
}

fn required(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let require = |level: &str, more: &[&str]| {
        let mut command = Held::command(&[&target]);
        run(command
            .args(["--require", level])
            .args(more)
            .args(["--", "echo", "ran"]))
    };
    for level in ["detect", "best-effort"] {
        require(level, &[])?.expect(0)?;
    }
    let enforce = require("enforce", &[])?;
    if has_bpf()? {
        enforce.expect(0)?;
    } else {
        expect_too_weak(enforce, &target)?.says("lsm=")?;
        // With nothing left to protect there is nothing to require.
        let all = ["freeze", "kill", "migrate", "ptrace"];
        let allow: Vec<_> = all.iter().flat_map(|name| ["--allow", name]).collect();
        require("enforce", &allow)?.expect(0)?;
    }
    for flags in [
        &["--require", "most"][..],
        &["--require", "enforce", "--level", "detect"],
    ] {
        let mut command = Held::command(&[&target]);
        run(command.args(flags).args(["--", "true"]))?.expect(64)?;
    }
    expect_clean()
}

/// That it was refused for what this host lacks, and has left nothing.
pub(super) fn expect_too_weak(finished: Finished, target: &Cgroup) -> Result<Finished> {
    let finished = finished
        .expect(69)?
        .says("does not reach the level")?
        .says("freezer-guard doctor")?;
    ensure!(!finished.stdout.contains("ran"), "COMMAND was run");
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()?;
    Ok(finished)
}

fn detect(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let outside = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let held = held_at(&target, "detect")?;
    ensure!(guards()?[0]["level"] == "detect");
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    let mut moves = 2;
    if hierarchy == Hierarchy::V2 {
        // A clone that is put there passes where no other move does.
        tool(["clone-into", &target.text()])?.expect(0)?;
        moves += 1;
    }
    target.expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    let pid = workload.pid;
    outside.expect_allowed("cgroup.procs", &pid.to_string())?;
    target.expect_allowed("cgroup.procs", &pid.to_string())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT)?;
    // The kernel asks for a tracer's permission here.
    fs::File::open(format!("/proc/{pid}/mem"))?;
    let guard = guards()?.remove(0);
    let counts = [
        ("freeze", 2),
        ("migrate", moves),
        ("kill", 1),
        ("ptrace", 1),
    ];
    for (kind, count) in counts {
        ensure!(guard["violations"][kind] == count, "{kind}: {guard}");
        ensure!(guard["denials"][kind] == 0, "{kind}: {guard}");
    }
    held.release()?
        .expect(73)?
        .says("(detect)")?
        .says("refused nothing")?
        .says(&format!("thawed {}", target.text()))?;
    let violators = guard["violators"].to_string();
    for deed in [
        format!("moved pid {pid} out of"),
        format!("sent SIGCONT to pid {pid}"),
        format!("was permitted to trace pid {pid}"),
    ] {
        ensure!(violators.contains(&deed), "no {deed:?} in {violators}");
    }
    target.thaw()?;
    workload.expect_counting()?;
    drop((workload, target));
    expect_clean()
}

fn busy(hierarchy: Hierarchy) -> Result<()> {
    let targets = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let other = |level: &str| {
        let mut command = Held::command(&[&targets[1]]);
        run(command.args(["--level", level, "--", "echo", "ran"]))
    };
    let held = Held::new(&[&targets[0]])?;
    let finished = other("detect")?.expect(75)?;
    finished
        .says(strongest()?)?
        .says("wait until all guards end")?;
    other(strongest()?)?.expect(0)?;
    held.release()?.expect(0)?;
    // What is loaded does too little for this one.
    let held = held_at(&targets[0], "detect")?;
    other("enforce")?.expect(75)?.says("detect")?;
    let mut weak = Held::command(&[&targets[1]]);
    run(weak.args(["--require", "detect", "--", "true"]))?
        .expect(0)?
        .says("(detect)")?;
    held.release()?.expect(0)?;
    expect_clean()
}

/// What a `run` that was killed has left is not what the next one gets.
fn left(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = held_at(&target, "detect")?;
    held.process().signal(Signal::SIGKILL)?;
    eventually("the kill", || held.process().has_ended())?;
    held.process().close_input();
    // `status` would remove it.
    let pins = fs::read_dir("/sys/fs/bpf/freezer-guard")?.count();
    ensure!(pins > 0, "nothing is left");
    eventually("the guard goes", || {
        let finished = run(Held::command(&[&target]).args(["--", "true"]))?;
        if finished.code == 75 {
            return Ok(false);
        }
        let level = format!("({})", strongest()?);
        finished.expect(0)?.says(&level).map(|_| true)
    })?;
    target.thaw()?;
    expect_clean()
}
