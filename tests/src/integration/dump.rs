//! Real CRIU under the guard: dumps, final states, restores.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, within},
    process::{Finished, Held, LONG, Process, run},
    scratch_folder,
};

pub(super) fn list(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    list.add("thawed_then_gone", |h| dump(h, Start::Thawed, After::Gone));
    list.add("thawed_left_running", |h| {
        dump(h, Start::Thawed, After::Running)
    });
    list.add("frozen_then_gone", |h| dump(h, Start::Frozen, After::Gone));
    list.add("frozen_left_running", |h| {
        dump(h, Start::Frozen, After::Running)
    });
    list.add("without_the_freezer", without_freezer);
    list.add("intruder_freezes_in_the_window", window);
}

#[derive(Clone, Copy, PartialEq)]
enum Start {
    Thawed,
    Frozen,
}

#[derive(Clone, Copy, PartialEq)]
enum After {
    Gone,
    Running,
}

/// The end of a log of CRIU's, for a failure's report.
pub(super) fn log(images: &Path, name: &str) -> String {
    let text = fs::read_to_string(images.join(name)).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    format!(
        "{name}:\n{}",
        lines[lines.len().saturating_sub(25)..].join("\n")
    )
}

/// Returns whether CRIU can tell which memory has changed. If it cannot, it makes no pre-dump.
pub(super) fn tracks_memory() -> Result<bool> {
    let mut check = Command::new("criu");
    Ok(run(check.args(["check", "--feature", "mem_dirty_track"]))?.code == 0)
}

pub(super) fn criu_dump(command: &mut Command, root: i32, cgroup: &Cgroup, images: &Path) {
    let root = root.to_string();
    command.args(["criu", "dump", "-t", &root, "-o", "dump.log", "-v4", "-D"]);
    command.arg(images).arg("--freeze-cgroup").arg(&cgroup.path);
}

pub(super) fn restore(workload: &Workload, images: &Path, since: &[u64]) -> Result<()> {
    let mut criu = Command::new("criu");
    criu.args(["restore", "-o", "restore.log", "-v4", "-d", "-D"])
        .arg(images);
    run(&mut criu)?
        .expect(0)
        .with_context(|| log(images, "restore.log"))?;
    workload
        .expect_counting_from(since)
        .context("after the restore")
}

fn dump(hierarchy: Hierarchy, start: Start, after: After) -> Result<()> {
    let cgroup = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&cgroup], 3)?;
    workload.expect_counting()?;
    let since = workload.counters()?;
    let images = scratch_folder("images")?;
    let mut command = Command::new("freezer-guard");
    command.arg("run").arg("--cgroup").arg(&cgroup.path);
    match start {
        Start::Frozen => cgroup.freeze()?,
        Start::Thawed => {
            command.arg("--freeze");
        }
    }
    command.arg("--");
    criu_dump(&mut command, workload.pid, &cgroup, &images);
    if after == After::Running {
        command.arg("--leave-running");
    }
    let finished = run(&mut command)?
        .expect(0)
        .with_context(|| log(&images, "dump.log"))?;
    finished.says("refused nothing")?;

    let state = cgroup.state()?;
    match after {
        After::Gone => {
            ensure!(
                cgroup.pids()?.is_empty(),
                "tasks are left: {:?}",
                cgroup.pids()?
            );
            // A restore into a frozen cgroup would hang.
            ensure!(state == "THAWED", "left {state}");
        }
        After::Running if start == Start::Frozen => {
            ensure!(state == "FROZEN", "left {state}");
            let before = workload.counters()?;
            thread::sleep(Duration::from_millis(200));
            ensure!(workload.counters()? == before, "frozen tasks count");
        }
        After::Running => {
            ensure!(state == "THAWED", "left {state}");
            workload.expect_counting().context("left running")?;
        }
    }
    cgroup.kill_all()?;
    restore(&workload, &images, &since)
}

/// CRIU is not told of the cgroup, and seizes tasks that run.
fn without_freezer(hierarchy: Hierarchy) -> Result<()> {
    let cgroup = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&cgroup], 3)?;
    workload.expect_counting()?;
    let since = workload.counters()?;
    let images = scratch_folder("images")?;
    let mut command = Command::new("freezer-guard");
    command.args([
        "run",
        "--freeze",
        "--thaw",
        "--cgroup",
        &cgroup.text(),
        "--",
    ]);
    command.args(["criu", "dump", "-o", "dump.log", "-v4", "-D"]);
    command.arg(&images).arg("-t").arg(workload.pid.to_string());
    run(&mut command)?
        .expect(0)
        .with_context(|| log(&images, "dump.log"))?
        .says("refused nothing")?;
    ensure!(cgroup.state()? == "THAWED", "left {}", cgroup.state()?);
    restore(&workload, &images, &since)
}

/// Stops CRIU where it is, until it gets SIGCONT: what is done meanwhile may take its
/// time.
pub(super) fn stop_criu() -> Result<Pid> {
    let criu = *named(&["criu"])?.first().context("CRIU runs")?;
    kill(criu, Signal::SIGSTOP)?;
    Ok(criu)
}

/// The processes with one of these names.
pub(super) fn named(names: &[&str]) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if let Some(pid) = pid.filter(|_| names.contains(&comm.trim())) {
            pids.push(Pid::from_raw(pid));
        }
    }
    Ok(pids)
}

/// CRIU is held up after its own thaw, where a freeze would hang it for ever.
fn window(hierarchy: Hierarchy) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let cgroup = parent.child("target")?;
    let workload = Workload::start(&[&cgroup], 3)?;
    workload.expect_counting()?;
    let since = workload.counters()?;
    cgroup.freeze()?;
    let images = scratch_folder("images")?;
    let mut command = Command::new("freezer-guard");
    command
        .arg("run")
        .arg("--cgroup")
        .arg(&cgroup.path)
        .arg("--");
    command.args([
        "strace",
        "-o",
        "/dev/null",
        "-e",
        "inject=write:delay_exit=1500000",
        "-P",
    ]);
    command.arg(cgroup.freezer());
    criu_dump(&mut command, workload.pid, &cgroup, &images);
    command.arg("--leave-running");
    let mut process = Process::spawn(&mut command)?;
    within(LONG, "CRIU thaws", || {
        ensure!(!process.has_ended()?, "ended before it thawed the cgroup");
        Ok(cgroup.state()? == "THAWED")
    })?;
    let criu = stop_criu()?;
    for target in [&cgroup, &parent] {
        target.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    }
    kill(criu, Signal::SIGCONT)?;
    let finished: Finished = process.wait(LONG)?;
    finished
        .expect(0)
        .with_context(|| log(&images, "dump.log"))?
        .says("refused 2 attempts")?;
    cgroup.kill_all()?;
    restore(&workload, &images, &since)?;
    // The restored tree can be guarded again.
    Held::new(&[&cgroup])?.release()?.expect(0)?;
    Ok(())
}
