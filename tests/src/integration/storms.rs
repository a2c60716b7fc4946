//! Much at once: migrations, forks, dumps.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    dump::{criu_dump, log},
    lifecycle::expect_clean,
    process::{Held, LONG, Process, guards, run, tool},
    scratch_folder,
};

pub(super) fn list(list: &mut List<'_>) {
    if list.can_dump() {
        list.add("no_false_alarm_in_3_dumps", |h| no_false_alarm(h, 3));
    }
}

/// These take minutes.
pub(super) fn list_long(list: &mut List<'_>) {
    match list.hierarchy {
        Hierarchy::V1 => list.add("moves_by_a_changing_write", changing_write),
        Hierarchy::V2 => list.add("migrations", migrations),
    }
    if list.can_dump() {
        list.add("fork_bomb", fork_bomb);
        list.add("no_false_alarm_in_50_dumps", |h| no_false_alarm(h, 50));
    }
}

/// Two numbers that the tool printed.
pub(super) fn numbers(line: &str) -> Result<(u64, u64)> {
    let (one, two) = line.trim().split_once(' ').context("two numbers")?;
    Ok((one.parse()?, two.parse()?))
}

fn migrations(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let child = target.child("child")?;
    let outside = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let migrate = || {
        tool([
            "migrate",
            &target.text(),
            &outside.text(),
            &workload.pid.to_string(),
        ])
    };
    let held = Held::new(&[&target])?;
    let (attempts, successes) = numbers(&migrate()?.expect(0)?.stdout)?;
    ensure!(attempts > 100, "only {attempts} attempts");
    ensure!(successes == 0, "{successes} of {attempts} went through");
    held.release()?
        .expect(0)?
        .says(&format!("refused {attempts} attempts"))?;
    workload.expect_counting()?;
    // Without the guard nothing is refused.
    let (attempts, successes) = numbers(&migrate()?.expect(0)?.stdout)?;
    ensure!(
        attempts == successes,
        "{successes} of {attempts} without a guard"
    );
    child.kill_all()?;
    target.kill_all()?;
    outside.kill_all()?;
    expect_clean()
}

/// The program reads one pid, the kernel another: that cannot be refused on v1,
/// and none of it is missed.
fn changing_write(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let outside = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 40)?;
    let held = Held::new(&[&target])?;
    let (writes, gone) = numbers(
        &tool(["flip", &target.text(), &outside.text()])?
            .expect(0)?
            .stdout,
    )?;
    ensure!(
        gone > 0,
        "none of {writes} writes got past the refusal: nothing was tested"
    );
    let guard = &guards()?[0];
    ensure!(
        guard["violations"]["migrate"] == gone,
        "{gone} are gone: {guard}"
    );
    held.release()?.expect(73)?.says("moved pid")?;
    drop(workload);
    expect_clean()
}

/// A tree that forks all the time; returns its root.
fn bomb(cgroup: &Cgroup, processes: usize) -> Result<i32> {
    let arguments = [
        "bomb",
        &cgroup.text(),
        "--processes",
        &processes.to_string(),
    ];
    Ok(tool(arguments)?.expect(0)?.stdout.trim().parse()?)
}

fn fork_bomb(hierarchy: Hierarchy) -> Result<()> {
    const TASKS: usize = 200;
    let target = Cgroup::new(hierarchy)?;
    let root = bomb(&target, TASKS)?;
    let images = scratch_folder("images")?;
    let mut command = Held::command(&[&target]);
    command.args(["--freeze-timeout", "1m", "--"]);
    criu_dump(&mut command, root, &target, &images);
    let process = Process::spawn(&mut command)?;
    process
        .wait(3 * LONG)?
        .expect(0)
        .with_context(|| log(&images, "dump.log"))?
        .says("refused nothing")?;
    let tasks = fs::read_dir(&images)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("core-"))
        .count();
    ensure!(tasks > TASKS, "the image holds {tasks} tasks");
    ensure!(target.pids()?.is_empty(), "tasks are left");
    expect_clean()
}

/// Undisturbed dumps of a tree that forks whenever it is let go.
fn no_false_alarm(hierarchy: Hierarchy, dumps: usize) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let root = bomb(&target, 3)?;
    for number in 1..=dumps {
        let images = scratch_folder("images")?;
        let mut command = Held::command(&[&target]);
        command.arg("--");
        criu_dump(&mut command, root, &target, &images);
        command.arg("--leave-running");
        let finished = run(&mut command)?
            .expect(0)
            .with_context(|| format!("dump {number}: {}", log(&images, "dump.log")))?
            .says("refused nothing")?;
        ensure!(
            !finished.stderr.contains("VIOLATED"),
            "dump {number}: {finished:?}"
        );
        fs::remove_dir_all(&images)?;
    }
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    ensure!(
        target.pids()?.len() >= 4,
        "the tree is not whole: {:?}",
        target.pids()?
    );
    Ok(())
}
