//! Much at once: migrations, forks, dumps.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    dump::{criu_dump, log},
    lifecycle::expect_clean,
    process::{Held, LONG, Process, guards, run, tool},
    scratch,
};
use crate::config;

pub(super) fn list(list: &mut List<'_>) {
    match list.hierarchy {
        Hierarchy::V1 => list.add("moves_by_a_changing_write", changing_write),
        Hierarchy::V2 => list.add("migrations", migrations),
    }
    // With both hierarchies CRIU 3.17 takes any freezer for one of v1.
    if list.hierarchy == Hierarchy::V2 && list.config.cgroup == config::Cgroup::Hybrid {
        return;
    }
    list.add("fork_bomb", fork_bomb);
    list.add("no_false_alarm", no_false_alarm);
}

/// Two numbers that the tool printed.
fn numbers(line: &str) -> Result<(u64, u64)> {
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

fn fork_bomb(hierarchy: Hierarchy) -> Result<()> {
    const TASKS: usize = 200;
    let target = Cgroup::new(hierarchy)?;
    let bomb = tool(["bomb", &target.text(), "--processes", &TASKS.to_string()])?.expect(0)?;
    let root = bomb.stdout.trim();
    let images = scratch("images");
    fs::create_dir(&images)?;
    let mut command = Held::command(&[&target]);
    command.args(["--freeze-timeout", "1m", "--", "criu", "dump", "-t", root]);
    command.args([
        "-o",
        "dump.log",
        "-v4",
        "--freeze-cgroup",
        &target.text(),
        "-D",
    ]);
    let process = Process::spawn(command.arg(&images))?;
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

/// Undisturbed dumps of a tree that goes on meanwhile, as its own tasks do.
fn no_false_alarm(hierarchy: Hierarchy) -> Result<()> {
    const DUMPS: usize = 50;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    for number in 0..DUMPS {
        let images = scratch("images");
        fs::create_dir(&images)?;
        let mut command = Command::new("freezer-guard");
        command.args(["run", "--freeze", "--cgroup", &target.text(), "--"]);
        criu_dump(&mut command, &workload, &target, &images);
        command.arg("--leave-running");
        let finished = run(&mut command)?
            .expect(0)
            .with_context(|| log(&images, "dump.log"))?;
        ensure!(
            !finished.stderr.contains("VIOLATED"),
            "dump {number}: {finished:?}"
        );
        finished.says("refused nothing")?;
        fs::remove_dir_all(&images)?;
        // A guest that is silent for minutes is taken for dead.
        if (number + 1) % 10 == 0 {
            eprintln!("{} dumps of {DUMPS}", number + 1);
        }
    }
    workload.expect_counting()
}
