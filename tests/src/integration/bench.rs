//! The figures of `freezer-guard-bench`, and that it leaves nothing behind. No test asserts how large
//! a figure is: `cargo xtask bench --check` does.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, eventually, within},
    lifecycle::expect_clean,
    process::{Finished, Held, LONG, Process, guards, run},
};

const BENCH: &str = "freezer-guard-bench";

fn bench(arguments: &[&str]) -> Result<Finished> {
    run(Command::new(BENCH).args(arguments))
}

pub(super) fn list(list: &mut List<'_>) {
    list.add("wants_to_be_alone", wants_to_be_alone);
}

/// It measures in every hierarchy that there is.
fn measures_here(list: &List<'_>) -> bool {
    list.hierarchy == Hierarchy::V2 || !Hierarchy::V2.is_here()
}

/// These take minutes.
pub(super) fn list_long(list: &mut List<'_>) {
    if measures_here(list) {
        list.add("measures", measures);
        list.add("measures_the_life_of_guards", measures_lives);
        list.add("holds_more_than_1024_guards", most_guards);
        if list.can_dump() {
            list.add("measures_whole_dumps", measures_dumps);
        }
    }
    list.add("notices_that_a_guard_has_gone", loses);
    list.add("leaves_nothing_when_stopped", stopped);
}

fn measures(_: Hierarchy) -> Result<()> {
    let arguments = ["--json", "--guards", "1,3", "--only", "freezer,signal"];
    let finished = bench(&arguments)?.expect(0)?;
    let report: Value = serde_json::from_str(&finished.stdout)?;
    let rows = report["rows"].as_array().context("rows")?;
    for hierarchy in [Hierarchy::V1, Hierarchy::V2] {
        let mut here = rows
            .iter()
            .filter(|row| row["hierarchy"] == hierarchy.name());
        ensure!(here.next().is_some() == hierarchy.is_here(), "{report}");
    }
    let is_signal = |row: &Value| row["operation"] == "signal";
    let (signals, freezers): (Vec<_>, Vec<_>) = rows.iter().partition(|row| is_signal(row));
    ensure!(freezers.len() == 2 * signals.len(), "{report}");
    for row in rows {
        let figures = row["figures"].as_array().context("figures")?;
        let conditions: Vec<_> = figures
            .iter()
            .filter(|figure| figure["median"].as_f64().is_some_and(|ns| ns > 0.0))
            .filter_map(|figure| figure["condition"].as_str())
            .collect();
        let all = [
            "none", "empty", "idle", "watch", "guards-1", "guards-3", "after",
        ];
        ensure!(conditions == all, "{row}");
    }
    bench(&["--guards", "1", "--only", "stat"])?
        .expect(0)?
        .says("measuring")?;
    expect_clean()
}

fn measures_lives(_: Hierarchy) -> Result<()> {
    let arguments = [
        "--json", "--guards", "130", "--tasks", "110", "--only", "and ",
    ];
    let finished = bench(&arguments)?.expect(0)?;
    let report: Value = serde_json::from_str(&finished.stdout)?;
    let part = |name: &str| report[name].as_array().context("no such part").cloned();
    let is_positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    let there = [Hierarchy::V1, Hierarchy::V2]
        .into_iter()
        .filter(|hierarchy| hierarchy.is_here())
        .count();
    for (name, each, figures) in [
        ("lives", 3, &["begin", "end"][..]),
        ("scale", 1, &["begin", "end"]),
        ("memory", 2, &["service", "maps", "programs"]),
    ] {
        let entries = part(name)?;
        ensure!(entries.len() == each * there, "{name}: {report}");
        for entry in &entries {
            let all = figures.iter().all(|figure| is_positive(&entry[figure]));
            ensure!(all, "{name}: {entry}");
        }
    }
    ensure!(part("rows")?.is_empty(), "{report}");
    ensure!(part("scale")?[0]["guards"] == 130, "{report}");
    expect_clean()
}

/// The number is one more than maps with memory taken in advance would hold.
fn most_guards(_: Hierarchy) -> Result<()> {
    /// On an emulated machine that has other things to do.
    const LIMIT: Duration = Duration::from_secs(600);
    let mut command = Command::new(BENCH);
    command.args(["--only", "memory", "--guards", "1025"]);
    let mut process = Process::spawn(&mut command)?;
    process.close_input();
    process.wait(LIMIT)?.expect(0)?;
    expect_clean()
}

fn measures_dumps(_: Hierarchy) -> Result<()> {
    let arguments = ["--json", "--only", "dumps", "--dumps", "1"];
    let finished = bench(&arguments)?.expect(0)?;
    let report: Value = serde_json::from_str(&finished.stdout)?;
    let dumps = report["dumps"].as_array().context("dumps")?;
    ensure!(dumps.len() == 3, "{report}");
    for dump in dumps {
        let took = |name: &str| dump[name].as_f64().is_some_and(|ns| ns > 0.0);
        ensure!(took("guarded") && took("bare"), "{dump}");
    }
    let mut without_criu = Command::new("/guest/bin/freezer-guard-bench");
    without_criu.args(arguments).env("PATH", "/nowhere");
    run(&mut without_criu)?.expect(69)?.says("was not found")?;
    bench(&["--only", "dumps"])?.expect(64)?.says("--dumps")?;
    bench(&["--only", "dumps", "--dumps", "99999999"])?
        .expect(69)?
        .says("does not fit")?;
    expect_clean()
}

fn wants_to_be_alone(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    bench(&[])?.expect(75)?.says("is in use")?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    bench(&["--guards", "many"])?.expect(64)?;
    bench(&["--only", "stat,nothing"])?
        .expect(64)?
        .says("write guarded freezer")?;
    expect_clean()
}

/// What is measured without what it is to be measured with is no figure.
fn loses(_: Hierarchy) -> Result<()> {
    let mut command = Command::new(BENCH);
    let process = Process::spawn(command.args(["--guards", "1", "--only", "exec"]))?;
    within(LONG, "it holds a guard", || Ok(guards()?.len() == 1))?;
    let holder = guards()?[0]["holder_pids"][0].as_i64().context("a pid")?;
    kill(Pid::from_raw(holder as i32), Signal::SIGKILL)?;
    let finished = process.wait(LONG)?.expect(70)?;
    finished.says("the process for guards-0-1 has failed")?;
    eventually("what it had loaded has gone", || Ok(expect_clean().is_ok()))
}

/// What it has made goes with it or, when it is killed, with the next one.
fn stopped(hierarchy: Hierarchy) -> Result<()> {
    for (signal, code) in [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGKILL, 137),
    ] {
        let mut command = Command::new(BENCH);
        let process = Process::spawn(command.args(["--guards", "2", "--only", "exec"]))?;
        within(LONG, "it holds guards", || Ok(guards()?.len() == 2))?;
        process.signal(signal)?;
        process.wait(LONG)?.expect(code)?;
        within(LONG, "its guards have ended", || Ok(guards()?.is_empty()))?;
        eventually("what it had loaded has gone", || Ok(expect_clean().is_ok()))?;
        let left = made(hierarchy)?;
        ensure!(left.is_empty() || signal == Signal::SIGKILL, "{left:?}");
    }
    bench(&["--guards", "1", "--only", "stat"])?.expect(0)?;
    let left = made(hierarchy)?;
    ensure!(left.is_empty(), "{left:?}");
    expect_clean()
}

/// The cgroups that it has made.
fn made(hierarchy: Hierarchy) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for entry in fs::read_dir(hierarchy.root())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("freezer-guard-bench") {
            made.push(path);
        }
    }
    Ok(made)
}
