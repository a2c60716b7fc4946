//! How far a guard goes on this host, how far it has to, and that what gets past
//! it is noticed at every level.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

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
    ensure!(held.sh(&format!("echo 0 > {}", target.freezer().display()))? == 0);
    inside.tell("go")?;
    inside.wait(LONG)?.expect(0)?;
    let guard = guards()?.remove(0);
    ensure!(guard["violations"]["migrate"] == 1, "{guard}");
    held.release()?.expect(73)?.says("out of")?;
    expect_clean()
}

/// Holders, and what many processes try at once, where programs may be left out.
pub(super) fn list_crowds(list: &mut List<'_>) {
    for level in ["best-effort", "detect"] {
        list.add(&format!("{level}_holder"), move |h| holder(h, level));
        list.add(&format!("{level}_outlives_run"), move |h| {
            outlives(h, level)
        });
    }
    list.add("best_effort_misses_no_freeze", freezes);
    list.add("best_effort_misses_no_signal", signals);
    list.add("best_effort_misses_no_access", accesses);
    list.add("what_may_have_been_missed_is_a_violation", unseen);
    if list.hierarchy == Hierarchy::V2 {
        list.add("best_effort_misses_no_move", moves);
    }
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
        .says("is required")?
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
        format!("was let trace pid {pid}"),
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
    finished.says(strongest()?)?.says("wait until they end")?;
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

/// Who belongs to the holder may write at every level, and nobody else is
/// taken for one.
fn holder(hierarchy: Hierarchy, level: &'static str) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = held_at(&target, level)?;
    let freezer = target.freezer().display().to_string();
    let thaw = format!("echo {} > {freezer}", hierarchy.thawed());
    let freeze = format!("echo {} > {freezer}", hierarchy.frozen());
    for line in [
        thaw.clone(),
        format!("(:; (:; {freeze}; exit $?); exit $?)"),
        format!("guest-tool threads {freezer} {}", hierarchy.thawed()),
        format!("guest-tool daemon -- bash -c '{freeze}'; sleep 1"),
        thaw,
    ] {
        ensure!(held.sh(&line)? == 0, "the holder may not: {line}");
    }
    if level == "best-effort" {
        // 400 processes on all CPUs, and each of them a member while it lived.
        ensure!(held.sh("guest-tool storm")? == 0);
    }
    eventually("the holder is as small as before", || {
        let guards = guards()?;
        Ok(guards[0]["holder_pids"]
            .as_array()
            .is_some_and(|pids| pids.len() == 2))
    })?;
    held.release()?.expect(0)?.says("refused nothing")?;
    expect_clean()
}

fn outlives(hierarchy: Hierarchy, level: &'static str) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = held_at(&target, level)?;
    held.process().signal(Signal::SIGKILL)?;
    eventually("the kill", || held.process().has_ended())?;
    ensure!(guards()?.len() == 1, "the guard has gone with `run`");
    ensure!(held.sh("(:) & (:); wait")? == 0);
    ensure!(guards()?.len() == 1, "the guard has gone with others");
    held.process().close_input();
    eventually("the guard goes", || Ok(guards()?.is_empty()))?;
    target.thaw()?;
    expect_clean()
}

/// What a crowd of outsiders has done to a guard that may let some through.
struct Crowd {
    attempts: u64,
    successes: u64,
    /// What `status` says of the guard, and the state of its target, before its end.
    guard: Value,
    state: String,
    finished: Finished,
}

/// `first`: what the holder does before.
fn crowd(target: &Cgroup, first: &str, arguments: &[&str]) -> Result<Crowd> {
    let mut held = held_at(target, "best-effort")?;
    ensure!(held.sh(first)? == 0, "the holder may not: {first}");
    let said = tool(arguments)?.expect(0)?.stdout;
    let (attempts, successes) = said.trim().split_once(' ').context("two numbers")?;
    let (attempts, successes) = (attempts.parse()?, successes.parse()?);
    eprintln!("{attempts} attempts, {successes} went through");
    ensure!(attempts > 100, "only {attempts} attempts");
    Ok(Crowd {
        attempts,
        successes,
        guard: guards()?.remove(0),
        state: target.state()?,
        finished: held.release()?,
    })
}

/// Nothing is left out on a kernel that does not preempt itself, and much on one
/// that does it as often as it can.
fn expect_left_out(count: u64) -> Result<()> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    if cmdline
        .split_whitespace()
        .any(|word| word == "preempt=full")
    {
        ensure!(count > 0, "nothing was left out: nothing was tested");
        return Ok(());
    }
    // Debian's kernels preempt themselves since 6.18, if not as often.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut voluntary = ["6.1.", "6.12."].into_iter();
    let preempts = !voluntary.any(|version| release.starts_with(version));
    ensure!(preempts || count == 0, "{count}, and nothing preempts");
    Ok(())
}

fn expect_told(finished: Finished, disturbed: bool) -> Result<()> {
    match disturbed {
        true => finished.expect(73)?.says("VIOLATED")?,
        false => finished.expect(0)?,
    };
    Ok(())
}

/// Whether a write has changed anything is seen from the state in the end: it
/// was FROZEN, and changes by turns.
fn freezes(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let freezer = target.freezer().display().to_string();
    let arguments = ["toggle", &freezer, hierarchy.thawed(), hierarchy.frozen()];
    let crowd = crowd(&target, "true", &arguments)?;
    let (successes, guard) = (crowd.successes, crowd.guard);
    let counted = guard["violations"]["freeze"].as_u64().context("a count")?;
    ensure!(
        guard["denials"]["freeze"] == crowd.attempts - successes,
        "{successes} of {}: {guard}",
        crowd.attempts
    );
    ensure!(counted <= successes, "{successes} went through: {guard}");
    ensure!(
        (crowd.state == "FROZEN") == (counted % 2 == 0),
        "{counted} changes, and {}",
        crowd.state
    );
    expect_left_out(successes)?;
    expect_told(crowd.finished, counted > 0)?;
    expect_clean()
}

fn signals(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let crowd = crowd(&target, "true", &["continue", &workload.pid.to_string()])?;
    let (successes, guard) = (crowd.successes, crowd.guard);
    ensure!(
        guard["violations"]["kill"] == successes,
        "{successes}: {guard}"
    );
    expect_left_out(successes)?;
    expect_told(crowd.finished, successes > 0)?;
    workload.expect_counting()?;
    drop((workload, target));
    expect_clean()
}

/// The kernel asks for this permission with a spinlock held (`ptrace_may_access`):
/// nothing can interrupt the program, and nothing gets through. The tripwire for what was permitted
/// before is left out now and then, at what is refused: that is no violation.
fn accesses(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    for way in ["peek", "seize"] {
        let crowd = crowd(&target, "true", &[way, &workload.pid.to_string()])?;
        let (successes, guard) = (crowd.successes, crowd.guard);
        ensure!(
            successes == 0 && guard["missed"] == 0,
            "{way}: {successes}: {guard}"
        );
        crowd.finished.expect(0)?;
    }
    workload.expect_counting()?;
    drop((workload, target));
    expect_clean()
}

/// The tripwire for writes to memory is left out at harmless ones, too: where nothing is refused,
/// nobody knows, and the run says so.
fn unseen(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let held = Held::new(&[&target])?;
    tool(["poke-own"])?.expect(0)?;
    held.release()?.expect(0)?;
    let held = held_at(&target, "detect")?;
    tool(["poke-own"])?.expect(0)?;
    let guard = guards()?.remove(0);
    let missed = guard["missed"].as_u64().context("a count")?;
    eprintln!("{missed} missed");
    expect_left_out(missed)?;
    let finished = held.release()?;
    match missed {
        0 => finished.expect(0)?,
        _ => finished.expect(73)?.says("went unseen")?,
    };
    drop((workload, target));
    expect_clean()
}

fn moves(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let child = target.child("child")?;
    let outside = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    // What was cloned into it shall come to its end.
    let thaw = format!(
        "echo {} > {}",
        hierarchy.thawed(),
        target.freezer().display()
    );
    let pid = workload.pid.to_string();
    let crowd = crowd(
        &target,
        &thaw,
        &["migrate", &target.text(), &outside.text(), &pid],
    )?;
    let (successes, guard) = (crowd.successes, crowd.guard);
    // A move to where the task is already goes through and changes nothing.
    let counted = guard["violations"]["migrate"].as_u64().context("a count")?;
    ensure!(counted <= successes, "{successes}: {guard}");
    ensure!((counted == 0) == (successes == 0), "{successes}: {guard}");
    expect_left_out(successes)?;
    expect_told(crowd.finished, counted > 0)?;
    child.kill_all()?;
    target.kill_all()?;
    outside.kill_all()?;
    drop((workload, child, target, outside));
    expect_clean()
}
