//! Many guards at once: one for each cgroup, none inside another.

use std::{
    collections::BTreeSet,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    lifecycle::expect_clean,
    process::{Held, LONG, Process, guards, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("leaves_others_alone", leaves_others_alone);
    list.add("ten_siblings", siblings);
    list.add("parent_then_child", |h| overlap(h, true));
    list.add("child_then_parent", |h| overlap(h, false));
    list.add("two_cgroups_in_one_guard", two);
    list.add("waits_for_another", waits);
    list.add("waits_no_longer_than_it_may", waits_in_vain);
    list.add("what_is_done_above_counts_for_all", counts_for_all);
}

/// A hundred guards and more.
pub(super) fn list_many(list: &mut List<'_>) {
    list.add("hundred_on_one_cgroup", hundred);
    list.add("two_hundred_below_one", two_hundred);
}

/// By the processes of which `freezer-guard-bench` starts many.
fn two_hundred(hierarchy: Hierarchy) -> Result<()> {
    const GUARDS: usize = 200;
    let top = Cgroup::new(hierarchy)?;
    let targets = (0..GUARDS)
        .map(|number| top.child(&number.to_string()))
        .collect::<Result<Vec<_>>>()?;
    let mut clients = Vec::new();
    for half in ["guards-0-100", "guards-100-200"] {
        let mut command = Command::new("freezer-guard-bench");
        let command = command.args(["--hold", half, &top.text()]);
        clients.push(Process::spawn(command)?);
    }
    for client in &mut clients {
        client.expect_line("ready")?;
        client.tell("")?;
    }
    for client in &mut clients {
        client.expect_line("held")?;
    }
    let ids: BTreeSet<_> = guards()?.iter().map(|guard| guard["id"].as_u64()).collect();
    ensure!(ids.len() == GUARDS, "{} guards are told", ids.len());
    for target in &targets {
        target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    }
    // Some go, and others come: the ones that stay are found.
    let mut first = clients.remove(0);
    first.tell("")?;
    first.expect_line("over")?;
    first.wait(LONG)?.expect(0)?;
    let held = Held::new(&[&targets[0]])?;
    targets[1].expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    for target in [&top, &targets[0], &targets[GUARDS - 1]] {
        target.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    }
    Held::start(&mut Held::command(&[&top]))?
        .release()?
        .expect(75)?;
    held.release()?.expect(0)?;
    top.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    // Killed, so that nobody but the kernel ends them.
    let last = clients.remove(0);
    last.signal(Signal::SIGKILL)?;
    last.wait(LONG)?.expect(137)?;
    top.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    let held = Held::new(&[&top])?;
    ensure!(guards()?.len() == 1, "{:?}", guards()?);
    held.release()?.expect(0)?;
    drop(targets);
    expect_clean()
}

/// Each of them is told who did it.
fn counts_for_all(hierarchy: Hierarchy) -> Result<()> {
    const GUARDS: usize = 11;
    let top = Cgroup::new(hierarchy)?;
    let targets = (0..GUARDS)
        .map(|number| top.child(&number.to_string()))
        .collect::<Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for target in &targets {
        let mut held = Held::start(Held::command(&[target]).args(["--level", "detect"]))?;
        held.wait_held()?;
        all.push(held);
    }
    top.freeze()?;
    let told = guards()?;
    ensure!(
        told.iter().all(|guard| guard["violations"]["freeze"] == 1),
        "{told:?}"
    );
    let named = |guard: &Value| guard["violators"].to_string().contains("froze");
    ensure!(told.iter().all(named), "{told:?}");
    top.thaw()?;
    for held in all {
        held.release()?.expect(73)?.says("freeze")?;
    }
    drop(targets);
    expect_clean()
}

/// Nothing that a guard does is refused by another one, or counts there.
fn leaves_others_alone(hierarchy: Hierarchy) -> Result<()> {
    let (other, target) = (Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?);
    let bystander = Held::new(&[&other])?;
    Held::new(&[&target])?.release()?.expect(0)?;
    let told = guards()?;
    for protection in ["freeze", "kill", "migrate", "ptrace"] {
        ensure!(told[0]["denials"][protection] == 0, "{told:?}");
        ensure!(told[0]["violations"][protection] == 0, "{told:?}");
    }
    ensure!(told.len() == 1, "{told:?}");
    bystander.release()?.expect(0)?.says("refused nothing")?;
    expect_clean()
}

/// `--wait` begins a guard when the one in the way has ended.
fn waits(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let first = Held::new(&[&target])?;
    let mut second = Held::start(Held::command(&[&target]).arg("--wait"))?;
    // The third attempt fails like the first one.
    thread::sleep(Duration::from_secs(2));
    ensure!(!second.process().has_ended()?, "it does not wait");
    ensure!(guards()?.len() == 1, "{:?}", guards()?);
    first.release()?.expect(0)?;
    second.wait_held()?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    let second = second.release()?.expect(0)?.says("waiting: ")?;
    ensure!(
        second.stderr.matches("waiting: ").count() == 1,
        "{}",
        second.stderr
    );
    expect_clean()
}

/// The time passes, or a signal comes.
fn waits_in_vain(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let first = Held::new(&[&target])?;
    run(Held::command(&[&target]).args(["--wait=1s", "--", "true"]))?
        .expect(75)?
        .says(" is busy: a guard holds ")?;
    let mut second = Held::start(Held::command(&[&target]).arg("--wait=1h"))?;
    thread::sleep(Duration::from_secs(1));
    second.process().signal(Signal::SIGINT)?;
    second.release()?.expect(130)?.says("SIGINT interrupted")?;
    // What lasts is no reason to wait.
    let other = Cgroup::new(hierarchy)?;
    run(Held::command(&[&other]).args(["--wait=1h", "--pid", "1", "--", "true"]))?.expect(75)?;
    ensure!(guards()?.len() == 1, "{:?}", guards()?);
    first.release()?.expect(0)?;
    expect_clean()
}

fn hundred(hierarchy: Hierarchy) -> Result<()> {
    const RUNS: usize = 100;
    let target = Cgroup::new(hierarchy)?;
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(Held::start(&mut Held::command(&[&target]))?);
    }
    // COMMAND of the winner waits for us: all others end first.
    let start = Instant::now();
    let mut losers = Vec::new();
    while losers.len() < RUNS - 1 {
        ensure!(
            start.elapsed() < 2 * LONG,
            "{} of {RUNS} still run",
            runs.len()
        );
        let mut still = Vec::new();
        for mut run in runs {
            if run.process().has_ended()? {
                losers.push(run);
            } else {
                still.push(run);
            }
        }
        runs = still;
        thread::sleep(Duration::from_millis(50));
    }
    for loser in losers {
        loser.release()?.expect(75)?;
    }
    let mut winner = runs
        .pop()
        .ok_or_else(|| anyhow::anyhow!("nobody has won"))?;
    winner.wait_held()?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    winner.release()?.expect(0)?.says("refused 1 attempt")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()
}

fn siblings(hierarchy: Hierarchy) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let targets = (0..10)
        .map(|i| parent.child(&format!("t{i}")))
        .collect::<Result<Vec<_>>>()?;
    let workloads = targets
        .iter()
        .map(|target| Workload::start(&[target], 0))
        .collect::<Result<Vec<_>>>()?;
    let mut helds = Vec::new();
    for target in &targets {
        helds.push(Held::start(&mut Held::command(&[target]))?);
    }
    for held in &mut helds {
        held.wait_held()?;
    }
    for (held, target) in helds.iter_mut().zip(&targets) {
        target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
        // A holder of one is an outsider to the others.
        let other = if target.path == targets[0].path {
            &targets[1]
        } else {
            &targets[0]
        };
        let write = |cgroup: &Cgroup| {
            format!(
                "echo {} > {}",
                hierarchy.thawed(),
                cgroup.freezer().display()
            )
        };
        ensure!(
            held.sh(&write(other))? != 0,
            "a holder may write to another's cgroup"
        );
        ensure!(
            held.sh(&write(target))? == 0,
            "a holder may not write to its own cgroup"
        );
    }
    for held in helds {
        parent.expect_refused(hierarchy.file(), hierarchy.frozen())?;
        held.release()?.expect(0)?;
    }
    parent.freeze()?;
    parent.thaw()?;
    for workload in &workloads {
        workload.expect_counting()?;
    }
    drop(targets);
    expect_clean()
}

fn overlap(hierarchy: Hierarchy, parent_first: bool) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let middle = parent.child("middle")?;
    let child = middle.child("child")?;
    let (first, second) = if parent_first {
        (&parent, &child)
    } else {
        (&child, &parent)
    };
    let held = Held::new(&[first])?;
    Held::start(&mut Held::command(&[second]))?
        .release()?
        .expect(75)?;
    first.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    Held::new(&[second])?.release()?.expect(0)?;
    drop((child, middle));
    expect_clean()
}

fn two(hierarchy: Hierarchy) -> Result<()> {
    let [one, two] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let held = Held::new(&[&one, &two])?;
    for cgroup in [&one, &two] {
        cgroup.expect_refused(hierarchy.file(), hierarchy.thawed())?;
        Held::start(&mut Held::command(&[cgroup]))?
            .release()?
            .expect(75)?;
    }
    held.release()?.expect(0)?.says("refused 2 attempts")?;
    for cgroup in [&one, &two] {
        ensure!(cgroup.state()? == "THAWED", "left {}", cgroup.state()?);
    }
    expect_clean()
}
