//! Holders and outsiders in crowds, on kernels that may leave programs out.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    super::{
        List,
        cgroups::{Cgroup, Hierarchy, Workload, eventually},
        lifecycle::expect_clean,
        mounts::Mount,
        process::{Finished, Held, guard, guards, run, tool},
    },
    held_at,
};

pub(in super::super) fn list(list: &mut List<'_>) {
    for level in ["best-effort", "detect"] {
        list.add(&format!("{level}_holder"), move |h| holder(h, level));
        list.add(&format!("{level}_outlives_run"), move |h| {
            outlives(h, level)
        });
    }
    list.add("best_effort_has_copies", copies);
    list.add("best_effort_misses_no_freeze", freezes);
    list.add("best_effort_misses_no_signal", signals);
    list.add("best_effort_misses_no_access", accesses);
    list.add("what_may_have_been_missed_is_a_violation", unseen);
    if list.hierarchy == Hierarchy::V2 {
        list.add("best_effort_misses_no_move", moves);
    }
}

/// Where guards have this level.
pub(in super::super) fn list_long(list: &mut List<'_>) {
    if list.config.boot.iter().any(|word| word.starts_with("lsm=")) {
        list.add("best_effort_misses_no_freeze_in_ten_minutes", freezes_long);
    }
}

/// Every process of the holder may write at every level, and no other process may.
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

/// The work of a crowd of outsiders, at a guard that may let some through.
struct Crowd {
    attempts: u64,
    successes: u64,
    /// How often the kernel has skipped the program that refuses them, and called a copy of it.
    skipped: u64,
    /// The guard's entry in `status`, and the state of its target, before its end.
    guard: Value,
    state: String,
    finished: Finished,
}

/// `first`: a command that the holder runs before. `program`: it refuses the attempts.
fn crowd(target: &Cgroup, first: &str, program: &str, arguments: &[&str]) -> Result<Crowd> {
    crowds(1, target, first, program, arguments)
}

/// So many crowds, one after the other.
fn crowds(
    count: usize,
    target: &Cgroup,
    first: &str,
    program: &str,
    arguments: &[&str],
) -> Result<Crowd> {
    let mut held = held_at(target, "best-effort")?;
    ensure!(held.sh(first)? == 0, "the holder may not: {first}");
    let before = skipped(program)?;
    let (mut attempts, mut successes) = (0_u64, 0_u64);
    for _ in 0..count {
        let said = tool(arguments)?.expect(0)?.stdout;
        let (more, through) = said.trim().split_once(' ').context("two numbers")?;
        attempts += more.parse::<u64>()?;
        successes += through.parse::<u64>()?;
        eprintln!("{attempts} attempts, {successes} went through");
    }
    ensure!(attempts > 100, "only {attempts} attempts");
    Ok(Crowd {
        attempts,
        successes,
        skipped: skipped(program)? - before,
        guard: guards()?.remove(0),
        state: target.state()?,
        finished: held.release()?,
    })
}

/// How often the kernel has skipped the attached program whose name begins so, or a copy of it.
fn skipped(program: &str) -> Result<u64> {
    let report = run(Command::new("freezer-guard").args(["doctor", "--json"]))?.stdout;
    let report: Value = serde_json::from_str(&report).context("the report of doctor")?;
    let programs = report["programs"].as_array().context("a list")?;
    let is_it = |one: &Value| {
        let name = one["name"].as_str().unwrap_or_default();
        name.starts_with(program) && one["attached"] == true
    };
    let loaded = programs.iter().find(|one| is_it(one));
    let loaded = loaded.with_context(|| format!("{program} is not attached: {report}"))?;
    eprintln!("{program}: {}", loaded["copies_misses"]);
    let copies = loaded["copies_misses"].as_array().context("a list")?;
    let mut copies = copies.iter().map(Value::as_u64);
    copies
        .try_fold(0, |all, misses| Some(all + misses?))
        .context("numbers")
}

/// Each program has its copies, and a kernel that preempts nothing needs none. Links that are gone are
/// made again by the next guard, and no link is left.
fn copies(hierarchy: Hierarchy) -> Result<()> {
    const MODE: &str = "/sys/kernel/debug/sched/preempt";
    let (target, other) = (Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?);
    let usual = if is_old()? { 12 } else { 6 };
    let is_hidden = !Path::new(MODE).exists();
    let place = "/sys/kernel/debug".into();
    let mounted = is_hidden.then(|| Mount::new("debugfs", place, None));
    let mounted = mounted.transpose()?;
    let seen = if is_preemptible()? { usual } else { 1 };
    guard(["unload"])?.expect(0)?;
    let first = held_at(&target, "best-effort")?;
    expect_copies(hierarchy, seen)?;
    first.release()?.expect(0)?;
    drop(mounted);
    let expected = if is_hidden { usual } else { seen };
    guard(["unload"])?.expect(0)?;
    let first = held_at(&target, "best-effort")?;
    expect_copies(hierarchy, expected)?;
    for gone in ["task_kill-3", "task_kill"] {
        let link = Path::new(PINS).join(gone);
        if !link.exists() {
            continue;
        }
        fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
        let second = held_at(&other, "best-effort")?;
        expect_copies(hierarchy, expected)?;
        second.release()?.expect(0)?;
    }
    first.release()?.expect(0)?;
    ensure!(links("task_kill") == 0, "links are left");
    expect_clean()
}

const PINS: &str = "/sys/fs/bpf/freezer-guard";

/// The links of this program and of its copies.
fn links(program: &str) -> usize {
    let names = (1..).map(|copy| format!("{program}-{copy}"));
    let names = [program.to_owned()].into_iter().chain(names);
    names
        .take_while(|name| Path::new(PINS).join(name).exists())
        .count()
}

/// That those programs that any task may interrupt are attached so often.
fn expect_copies(hierarchy: Hierarchy, count: usize) -> Result<()> {
    let writes = links("file_permission") + links("file_permission_v2");
    let moves = links("inode_permission");
    // A guard on v1 needs none, unless its tasks are on v2 as well.
    let expected_moves = match hierarchy {
        Hierarchy::V1 => moves,
        Hierarchy::V2 => count.min(3),
    };
    for (program, found, expected) in [
        ("file_permission", writes, count),
        ("task_kill", links("task_kill"), count),
        ("ptrace_access_check", links("ptrace_access_check"), 1),
        ("inode_permission", moves, expected_moves),
    ] {
        ensure!(found == expected, "{program}: {found}, not {expected}");
    }
    Ok(())
}

/// Whether this is one of Debian's kernels before 6.18. They preempt themselves only if they are told to.
fn is_old() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut old = ["6.1.", "6.12."].into_iter();
    Ok(old.any(|version| release.starts_with(version)))
}

/// Whether this boot asks for preemption wherever it is possible.
fn is_full() -> Result<bool> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    Ok(cmdline
        .split_whitespace()
        .any(|word| word == "preempt=full"))
}

/// Whether the kernel preempts itself.
fn is_preemptible() -> Result<bool> {
    Ok(is_full()? || !is_old()?)
}

/// At most one of so many gets past all copies of the program.
fn expect_refused(crowd: &Crowd, of: u64) -> Result<()> {
    ensure!(
        crowd.successes * of <= crowd.attempts,
        "{} of {} went through",
        crowd.successes,
        crowd.attempts
    );
    Ok(())
}

/// Nothing is skipped on a kernel that does not preempt itself, and much on one that does it as often as
/// it can. `is_long`: any that preempts itself had the time for it.
fn expect_skipped(count: u64, is_long: bool) -> Result<()> {
    let is_preemptible = is_preemptible()?;
    ensure!(
        is_preemptible || count == 0,
        "{count}, and nothing preempts"
    );
    ensure!(
        count > 0 || !(is_full()? || is_long && is_preemptible),
        "nothing was skipped: nothing was tested"
    );
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
    freezes_in(1, 10_000, hierarchy)
}

/// Ten minutes of it.
fn freezes_long(hierarchy: Hierarchy) -> Result<()> {
    freezes_in(200, 1_000_000, hierarchy)
}

/// In so many crowds, at most one of so many gets through.
fn freezes_in(count: usize, of: u64, hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let freezer = target.freezer().display().to_string();
    let arguments = ["toggle", &freezer, hierarchy.thawed(), hierarchy.frozen()];
    let crowd = crowds(count, &target, "true", "file_permission", &arguments)?;
    expect_refused(&crowd, of)?;
    expect_skipped(crowd.skipped, count > 1)?;
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
    expect_told(crowd.finished, counted > 0)?;
    expect_clean()
}

fn signals(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let pid = workload.pid.to_string();
    let crowd = crowd(&target, "true", "task_kill", &["continue", &pid])?;
    expect_refused(&crowd, 10_000)?;
    expect_skipped(crowd.skipped, false)?;
    let (successes, guard) = (crowd.successes, crowd.guard);
    ensure!(
        guard["violations"]["kill"] == successes,
        "{successes}: {guard}"
    );
    expect_told(crowd.finished, successes > 0)?;
    workload.expect_counting()?;
    drop((workload, target));
    expect_clean()
}

/// The kernel asks for this permission with a spinlock held (`ptrace_may_access`):
/// nothing can interrupt the program, and nothing gets through. The kernel leaves the tripwire of
/// refused attempts out now and then: that is no violation.
fn accesses(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    for way in ["peek", "seize"] {
        let crowd = crowd(
            &target,
            "true",
            "ptrace_access_check",
            &[way, &workload.pid.to_string()],
        )?;
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
    expect_skipped(missed, false)?;
    let finished = held.release()?;
    match missed {
        0 => finished.expect(0)?,
        _ => finished.expect(73)?.says("may have been missed")?,
    };
    drop((workload, target));
    expect_clean()
}

fn moves(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let child = target.child("child")?;
    let outside = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    // The task that was cloned into it shall come to its end.
    let thaw = format!(
        "echo {} > {}",
        hierarchy.thawed(),
        target.freezer().display()
    );
    let pid = workload.pid.to_string();
    let crowd = crowd(
        &target,
        &thaw,
        "inode_permission",
        &["migrate", &target.text(), &outside.text(), &pid],
    )?;
    expect_refused(&crowd, 10_000)?;
    expect_skipped(crowd.skipped, false)?;
    let (successes, guard) = (crowd.successes, crowd.guard);
    // A move to where the task is already goes through and changes nothing.
    let counted = guard["violations"]["migrate"].as_u64().context("a count")?;
    ensure!(counted <= successes, "{successes}: {guard}");
    ensure!((counted == 0) == (successes == 0), "{successes}: {guard}");
    expect_told(crowd.finished, counted > 0)?;
    child.kill_all()?;
    target.kill_all()?;
    outside.kill_all()?;
    drop((workload, child, target, outside));
    expect_clean()
}
