//! Dumps by a real CRIU, and restored tasks, which are free.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload, unique},
        dump,
        process::{LONG, Process, guards, last_guard, run},
        scratch, scratch_folder,
        service::{eventually, expect_idle},
    },
    FakeCriu, armed, sh, write,
};

/// The begin of a command that is no descendant of ours, and that strace holds up at the system
/// calls of `inject`: at all of them, or at those with this path.
pub(super) fn by_engine(inject: &str, path: Option<&Path>) -> Command {
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--wait", "--unit"]);
    command.arg(format!("{}.service", unique()));
    command.args(["strace", "-o", "/dev/null", "-e", inject]);
    if let Some(path) = path {
        command.arg("-P").arg(path);
    }
    command
}

/// The dump of an engine ends well, and its guard with it.
pub(super) fn expect_good(mut engine: Process, images: &Path) -> Result<()> {
    engine.close_input();
    engine
        .wait(LONG)
        .and_then(|ended| ended.expect(0))
        .with_context(|| dump::log(images, "dump.log"))?;
    expect_idle()
}

/// Dumps the workload, whose tasks end.
pub(super) fn dumped(target: &Cgroup, workload: &Workload) -> Result<PathBuf> {
    let images = scratch_folder("images")?;
    let mut command = Command::new("env");
    dump::criu_dump(&mut command, workload.pid, target, &images);
    run(&mut command)?
        .expect(0)
        .with_context(|| dump::log(&images, "dump.log"))?;
    expect_idle()?;
    Ok(images)
}

/// A real dump, by a process that is no descendant of ours.
pub(super) fn engine(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 3)?;
    workload.expect_counting()?;
    let images = scratch_folder("images")?;
    // Held up after its own thaw, where a freeze would hang it for ever.
    let mut command = by_engine("inject=write:delay_exit=3000000", Some(&target.freezer()));
    dump::criu_dump(&mut command, workload.pid, &target, &images);
    // By itself it gives up after 10 s.
    command.args(["--leave-running", "--timeout", "100"]);
    let engine = Process::spawn(&mut command)?;
    let guard = armed()?;
    ensure!(guard["cgroups"][0] == target.text(), "{guard}");
    eventually("CRIU thaws", || Ok(target.state()? == "THAWED"))?;
    let criu = dump::stop_criu()?;
    for value in [hierarchy.frozen(), hierarchy.thawed()] {
        target.expect_refused(hierarchy.file(), value)?;
    }
    kill(criu, Signal::SIGCONT)?;
    expect_good(engine, &images)?;
    workload.expect_counting()?;
    let last = last_guard()?;
    ensure!(
        last["cgroups"][0] == target.text() && last["denials"]["freeze"] == 2,
        "{last}"
    );
    ensure!(last["violations"]["freeze"] == 0, "{last}");
    target.kill_all()
}

/// A real dump of a container that its engine has paused: CRIU has found it FROZEN, and waits before
/// it lists the tasks that it seizes.
pub(super) fn paused(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 3)?;
    workload.expect_counting()?;
    target.freeze()?;
    let images = scratch_folder("images")?;
    let tasks = target.path.join(match hierarchy {
        Hierarchy::V1 => "tasks",
        Hierarchy::V2 => "cgroup.threads",
    });
    let mut command = by_engine("inject=openat:delay_enter=20000000:when=1", Some(&tasks));
    dump::criu_dump(&mut command, workload.pid, &target, &images);
    command.args(["--leave-running", "--timeout", "100"]);
    let engine = Process::spawn(&mut command)?;
    let guard = armed()?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    // On v1 CRIU itself has thawed it.
    ensure!(
        hierarchy == Hierarchy::V1 || target.state()? == "FROZEN",
        "it is {}: {guard}, {}",
        target.state()?,
        dump::log(&images, "dump.log")
    );
    expect_good(engine, &images)?;
    let last = last_guard()?;
    ensure!(last["denials"]["freeze"] == 1, "{last}");
    ensure!(last["violations"]["freeze"] == 0, "{last}");
    target.kill_all()
}

/// The guard is over when CRIU lets go of the tasks, and not when its process ends: an engine that has
/// paused the container thaws it on CRIU's answer.
pub(super) fn over_before_the_exit(hierarchy: Hierarchy) -> Result<()> {
    for is_paused in [false, true] {
        let target = Cgroup::new(hierarchy)?;
        let workload = Workload::start(&[&target], 3)?;
        workload.expect_counting()?;
        if is_paused {
            target.freeze()?;
        }
        let images = scratch_folder("images")?;
        let mut command = by_engine("inject=exit_group:delay_enter=5000000", None);
        dump::criu_dump(&mut command, workload.pid, &target, &images);
        command.args(["--leave-running", "--timeout", "100"]);
        let mut engine = Process::spawn(&mut command)?;
        armed()?;
        eventually("the guard is over", || {
            Ok(guards()?.is_empty() && last_guard()?["cgroups"][0] == target.text())
        })?;
        ensure!(!engine.has_ended()?, "CRIU has ended");
        let last = last_guard()?;
        let state = if is_paused { "FROZEN" } else { "THAWED" };
        ensure!(target.state()? == state, "it is {}", target.state()?);
        for value in [hierarchy.frozen(), hierarchy.thawed()] {
            target.expect_allowed(hierarchy.file(), value)?;
        }
        ensure!(!engine.has_ended()?, "CRIU has ended");
        workload.expect_counting()?;
        expect_good(engine, &images)?;
        ensure!(last_guard()?["id"] == last["id"], "{}", last_guard()?);
        target.kill_all()?;
    }
    Ok(())
}

/// A runtime pauses a pod of two containers and checkpoints one of them: it is refused to thaw or freeze
/// that one, and the pod as a whole, until CRIU has let go of it. The other one is free.
pub(super) fn pod(hierarchy: Hierarchy) -> Result<()> {
    let pod = Cgroup::new(hierarchy)?;
    let (one, other) = (pod.child("one")?, pod.child("other")?);
    let workloads = [Workload::start(&[&one], 1)?, Workload::start(&[&other], 1)?];
    for (cgroup, workload) in [&one, &other].into_iter().zip(&workloads) {
        workload.expect_counting()?;
        cgroup.freeze()?;
    }
    let images = scratch_folder("images")?;
    let wait = "inject=openat:delay_enter=5000000";
    let mut command = by_engine(wait, Some(Path::new("inventory.img")));
    dump::criu_dump(&mut command, workloads[0].pid, &one, &images);
    command.args(["--leave-running", "--timeout", "100"]);
    let engine = Process::spawn(&mut command)?;
    let guard = armed()?;
    ensure!(guard["cgroups"][0] == one.text(), "{guard}");
    for value in [hierarchy.thawed(), hierarchy.frozen()] {
        other.expect_allowed(hierarchy.file(), value)?;
        for cgroup in [&one, &pod] {
            cgroup.expect_refused(hierarchy.file(), value)?;
        }
    }
    expect_good(engine, &images)?;
    ensure!(
        last_guard()?["violations"]["freeze"] == 0,
        "{}",
        last_guard()?
    );
    for cgroup in [&one, &other, &pod] {
        cgroup.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    }
    for workload in &workloads {
        workload.expect_counting()?;
    }
    one.kill_all()?;
    other.kill_all()
}

/// What it restores is no part of the checkpointer.
pub(super) fn restore(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 2)?;
    workload.expect_counting()?;
    let since = workload.counters()?;
    let images = dumped(&target, &workload)?;
    dump::restore(&workload, &images, &since)?;
    // CRIU is gone, and what it restored lives.
    expect_idle()?;
    target.expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    workload.expect_counting()?;
    target.kill_all()
}

/// While CRIU restores, nobody freezes the cgroup or moves a task out of it. `by_engine`: the engine puts CRIU
/// itself into the cgroup of the container, as runc does.
pub(super) fn guarded_restore(hierarchy: Hierarchy, by_engine_move: bool) -> Result<()> {
    let (target, elsewhere) = (Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?);
    let workload = Workload::start(&[&target], 2)?;
    workload.expect_counting()?;
    let since = workload.counters()?;
    let images = dumped(&target, &workload)?;
    // Before it lets go of the first task.
    let inject = "inject=ptrace:delay_enter=200000";
    let criu = "exec criu restore -d -o restore.log -v4 -D \"$1\"";
    let mut command = Command::new("strace");
    command.args(["-o", "/dev/null", "-e", inject]);
    match by_engine_move {
        true => {
            command.args(["sh", "-c"]);
            // Moved after the begin of its program, by a process that is no child of it.
            let move_it = format!(
                "((while ! grep -qx criu /proc/$$/comm; do :; done; echo $$ > {}/cgroup.procs) &); {criu}",
                target.text()
            );
            command.args([&move_it, "sh"]);
        }
        false => {
            command.args(["sh", "-c", criu, "sh"]);
        }
    }
    let engine = Process::spawn(command.arg(&images))?;
    let guard = armed().with_context(|| dump::log(&images, "restore.log"))?;
    ensure!(guard["cgroups"][0] == target.text(), "{guard}");
    target.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    eventually("the root is there", || {
        Ok(target.pids()?.contains(&workload.pid))
    })?;
    elsewhere.expect_refused("cgroup.procs", &workload.pid.to_string())?;
    engine
        .wait(LONG)?
        .expect(0)
        .with_context(|| dump::log(&images, "restore.log"))?;
    workload.expect_counting_from(&since)?;
    expect_idle()?;
    let last = last_guard()?;
    for (kind, count) in last["violations"].as_object().context("counts")? {
        ensure!(count == 0, "{kind}: {last}");
    }
    for value in [hierarchy.frozen(), hierarchy.thawed()] {
        target.expect_allowed(hierarchy.file(), value)?;
    }
    target.kill_all()
}

/// CRIU stays, as the parent of what it has restored, for as long as that lives.
pub(super) fn attached_restore(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 2)?;
    workload.expect_counting()?;
    let since = workload.counters()?;
    let images = dumped(&target, &workload)?;
    let mut command = Command::new("criu");
    command.args(["restore", "-o", "restore.log", "-v4", "-D"]);
    let mut criu = Process::spawn(command.arg(&images))?;
    workload
        .expect_counting_from(&since)
        .with_context(|| dump::log(&images, "restore.log"))?;
    eventually("the guard is over", || Ok(guards()?.is_empty()))?;
    ensure!(!criu.has_ended()?, "CRIU has ended");
    target.expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    target.kill_all()?;
    criu.close_input();
    criu.wait(LONG)?;
    expect_idle()
}

/// A child that is put into a cgroup is a process that is being restored: it is no part of
/// the holder, and the guard does not wait for it.
pub(super) fn restored(hierarchy: Hierarchy) -> Result<()> {
    let (target, elsewhere) = (Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?);
    let (go, said, end) = (scratch("go"), scratch("said"), scratch("end"));
    for fifo in [&go, &end] {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU)?;
    }
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    armed()?;
    let child = format!(
        "(read l < {}; {} 2>/dev/null; echo $? > {}; read l < {}) >/dev/null 2>&1 & \
         echo $! > {}/cgroup.procs",
        go.display(),
        write(&target, hierarchy.thawed()),
        said.display(),
        end.display(),
        elsewhere.text()
    );
    sh(&mut criu, &child)?;
    ensure!(!elsewhere.pids()?.is_empty(), "no child was put there");
    fs::write(&go, "\n")?;
    eventually("the child has written", || {
        Ok(fs::read_to_string(&said).is_ok_and(|text| !text.is_empty()))
    })?;
    ensure!(
        fs::read_to_string(&said)?.trim() != "0",
        "what was restored may write as the holder"
    );
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    // A program that CRIU has started, or restored, begins no guard.
    let mut criu = FakeCriu::new()?.start()?;
    let program = format!("bash -c '{}'", write(&target, hierarchy.frozen()));
    sh(&mut criu, &program)?;
    ensure!(guards()?.is_empty(), "{:?}", guards()?);
    sh(&mut criu, &write(&target, hierarchy.thawed()))?;
    armed()?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    // The child lives.
    expect_idle()?;
    ensure!(!elsewhere.pids()?.is_empty(), "the child has ended");
    fs::write(&end, "\n")?;
    target.thaw()
}
