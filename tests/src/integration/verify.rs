//! All tasks of a checkpoint have to be in the guarded cgroup.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    process::Command,
};

use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, eventually},
    lifecycle::expect_clean,
    process::{Held, LONG, Process, expect_version, guard, run},
    scratch_folder,
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("stray_process", |h| stray(h, false));
    list.add("stray_of_criu", |h| stray(h, true));
    list.add("two_checkpoints_side_by_side", side_by_side);
    list.add("foreign_task_is_a_warning", foreign);
    list.add("alone", alone);
    list.add("traced_before", traced);
    list.add("no_such_process", |_| {
        guard(["run", "--pid", "4194000", "--", "true"])?.expect(64)?;
        guard(["verify", "--pid", "4194000"])?.expect(64)?;
        expect_clean()
    });
    list.add("names_may_be_any_bytes", odd_name);
    if list.hierarchy == Hierarchy::V1 {
        list.add("stray_thread", stray_thread);
        list.add("stopped_task_is_a_warning", stopped);
    } else {
        list.add("threaded_cgroup", threaded);
    }
}

fn run_with(target: &Cgroup, pid: i32) -> Command {
    let mut command = Held::command(&[target]);
    command.args(["--pid", &pid.to_string(), "--", "echo", "ran"]);
    command
}

/// A child of the root is elsewhere; `criu`: the root is named by COMMAND alone.
fn stray(hierarchy: Hierarchy, criu: bool) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 3)?;
    let strayed = target.pids()?[2];
    elsewhere.expect_allowed("cgroup.procs", &strayed.to_string())?;
    let mut command = match criu {
        false => run_with(&target, workload.pid),
        true => {
            let mut command = Held::command(&[&target]);
            let root = workload.pid.to_string();
            command.args(["--", "/usr/bin/env", "criu", "dump", "--tree", &root]);
            command
        }
    };
    let finished = run(&mut command)?.expect(75)?;
    let pid = format!("pid {strayed} (guest-tool)");
    let name = elsewhere.path.file_name().unwrap_or_default();
    finished.says(&pid)?.says(&name.to_string_lossy())?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    workload.expect_counting()?;
    target.expect_allowed("cgroup.procs", &strayed.to_string())?;
    let finished = run(&mut run_with(&target, workload.pid))?.expect(0)?;
    ensure!(finished.stdout.contains("ran"), "COMMAND was not run");
    expect_clean()
}

/// Of a process that is elsewhere, and of one that strays.
fn odd_name(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let dir = scratch_folder("odd")?;
    let program = dir.join(OsStr::from_bytes(b"odd-\xff"));
    fs::write(&program, "#!/bin/sh\nread line\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut odd = Process::spawn(&mut Command::new(&program))?;
    let pid = odd.pid().to_string();
    let comm = || Ok(fs::read(format!("/proc/{pid}/comm"))?.starts_with(b"odd-\xff"));
    eventually("it has its name", comm)?;
    let root = workload.pid.to_string();
    guard(["verify", "--cgroup", &target.text(), "--pid", &root])?.expect(0)?;
    run(&mut run_with(&target, workload.pid))?.expect(0)?;
    guard(["verify", "--cgroup", &target.text(), "--pid", &pid])?
        .expect(75)?
        .says(&format!("pid {pid} (odd-"))?;
    odd.tell("")?;
    odd.wait(LONG)?.expect(0)?;
    fs::remove_dir_all(dir)?;
    expect_clean()
}

fn stray_thread(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy)?;
    let mut stalled =
        Process::spawn(Command::new("guest-tool").args(["stall", "--cgroup", &target.text()]))?;
    stalled.expect_line("ready")?;
    let pid = stalled.pid().as_raw();
    let threads = fs::read_to_string(target.path.join("tasks"))?;
    let thread = threads.lines().find(|tid| *tid != pid.to_string());
    let thread = thread.unwrap_or_default();
    // The thread that stalls cannot be frozen: let it be the stray.
    elsewhere.expect_allowed("tasks", thread)?;
    let named = run(&mut run_with(&target, pid))?.expect(75)?;
    let unnamed = run(Held::command(&[&target]).args(["--", "echo", "ran"]))?.expect(75)?;
    for finished in [named, unnamed] {
        finished.says(&format!("thread {thread} of pid {pid}"))?;
    }
    // It is the root of nothing.
    guard(["verify", "--cgroup", &target.text(), "--pid", thread])?.expect(64)?;
    stalled.tell("go")?;
    expect_clean()
}

fn threaded(hierarchy: Hierarchy) -> Result<()> {
    let domain = Cgroup::new(hierarchy)?;
    let threads = domain.child("threads")?;
    threads.expect_allowed("cgroup.type", "threaded")?;
    run(Held::command(&[&threads]).args(["--", "echo", "ran"]))?
        .expect(64)?
        .says("threaded")?;
    Held::new(&[&domain])?.release()?.expect(0)?;
    expect_clean()
}

/// C has a task in the cgroup of D: C is refused, and D's end thaws nothing of C.
fn side_by_side(hierarchy: Hierarchy) -> Result<()> {
    let [c, d] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let of_c = Workload::start(&[&c], 1)?;
    let of_d = Workload::start(&[&d], 1)?;
    let strayed = c.pids()?[1];
    d.expect_allowed("cgroup.procs", &strayed.to_string())?;
    let held_d = Held::new(&[&d])?;
    c.freeze()?;
    let mut command = Command::new("freezer-guard");
    command.args(["run", "--cgroup", &c.text(), "--pid", &of_c.pid.to_string()]);
    run(command.args(["--", "echo", "ran"]))?
        .expect(75)?
        .says(&format!("pid {strayed}"))?;
    held_d.release()?.expect(0)?;
    ensure!(c.state()? == "FROZEN", "D's end has thawed C");
    ensure!(d.state()? == "THAWED", "left {}", d.state()?);
    c.thaw()?;
    of_c.expect_counting()?;
    of_d.expect_counting()?;
    expect_clean()
}

fn foreign(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let other = Workload::start(&[&target], 0)?;
    run(&mut run_with(&target, workload.pid))?
        .expect(0)?
        .says("warning")?
        .says(&format!("pid {} (guest-tool)", other.pid))?;
    expect_clean()
}

/// CRIU seizes it, and waits for ever.
fn stopped(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let child = target.pids()?[1];
    kill(Pid::from_raw(child), Signal::SIGSTOP)?;
    eventually("it stops", || {
        let stat = fs::read_to_string(format!("/proc/{child}/stat"))?;
        Ok(stat.contains(") T "))
    })?;
    run(&mut run_with(&target, workload.pid))?
        .expect(0)?
        .says(&format!(
            "CRIU waits for them for ever on cgroup v1; continue them (kill -CONT): pid {child} (guest-tool)"
        ))?;
    kill(Pid::from_raw(child), Signal::SIGCONT)?;
    workload.expect_counting()?;
    expect_clean()
}

fn alone(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let pid = &workload.pid.to_string();
    let path = &target.text();
    let verify = |json: bool| {
        let mut arguments = vec!["verify", "--pid", pid, "--cgroup", path];
        arguments.extend(json.then_some("--json"));
        guard(arguments)
    };
    let finished = verify(false)?.expect(0)?;
    ensure!(finished.stdout.contains("2 threads"), "{finished:?}");
    guard(["verify", "--pid", pid])?.expect(0)?;
    let good: Value = serde_json::from_str(&verify(true)?.expect(0)?.stdout)?;
    ensure!(
        good["good"] == true && good["report"]["tasks"] == 2,
        "{good}"
    );
    expect_version(&good)?;
    let strayed = target.pids()?[1];
    elsewhere.expect_allowed("cgroup.procs", &strayed.to_string())?;
    verify(false)?.expect(75)?.says(&format!("pid {strayed}"))?;
    let bad: Value = serde_json::from_str(&verify(true)?.expect(75)?.stdout)?;
    ensure!(
        bad["good"] == false && bad["report"]["strays"][0]["pid"] == strayed,
        "{bad}"
    );
    ensure!(target.state()? == "THAWED");
    expect_clean()
}

fn traced(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let pid = workload.pid.to_string();
    let mut tracer = Process::spawn(Command::new("guest-tool").args(["trace", &pid]))?;
    tracer.expect_line("ready")?;
    run(Held::command(&[&target]).args(["--", "echo", "ran"]))?
        .expect(75)?
        .says(&format!("traced by pid {}", tracer.pid()))?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    tracer.tell("go")?;
    workload.expect_counting()?;
    expect_clean()
}
