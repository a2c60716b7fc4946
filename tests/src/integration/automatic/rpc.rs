//! A CRIU that makes several dumps: each has a guard of its own.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload},
        dump,
        process::{LONG, Process, guards, last_guard, run},
        scratch, scratch_folder,
        service::{eventually, expect_idle},
    },
    armed, violated,
};

/// The client of a dump.
fn dump_by(target: &Cgroup, workload: &Workload, images: &Path) -> Command {
    let mut command = Command::new("guest-tool");
    command
        .arg("criu-dump")
        .arg("--freeze-cgroup")
        .arg(&target.path);
    command.arg(workload.pid.to_string()).arg(images);
    command
}

/// Every process may freeze the cgroup that the service has dumped.
fn expect_free(target: &Cgroup, workload: &Workload) -> Result<()> {
    expect_idle()?;
    workload.expect_counting()?;
    for value in [target.hierarchy.frozen(), target.hierarchy.thawed()] {
        target.expect_allowed(target.hierarchy.file(), value)?;
    }
    Ok(())
}

/// `criu service` in the foreground: a guard ends with the worker that has made the dump.
pub(super) fn service(hierarchy: Hierarchy) -> Result<()> {
    let socket = scratch("criu.socket");
    let mut command = Command::new("criu");
    command.args(["service", "--address"]).arg(&socket);
    let mut service = Process::spawn(&mut command)?;
    eventually("criu service listens", || Ok(socket.exists()))?;
    for _ in 0..2 {
        let target = Cgroup::new(hierarchy)?;
        let workload = Workload::start(&[&target], 1)?;
        let images = scratch_folder("images")?;
        let mut command = dump_by(&target, &workload, &images);
        let mut client = Process::spawn(command.arg("--service").arg(&socket).arg("--hold"))?;
        client.expect_line("dumped")?;
        let guard = armed()?;
        ensure!(guard["cgroups"][0] == target.text(), "{guard}");
        // The service itself holds nothing.
        ensure!(
            guard["holder_pids"]
                .as_array()
                .is_some_and(|all| all.len() == 1),
            "{guard}"
        );
        ensure!(dump::named(&["criu"])?.len() == 2, "no worker");
        for value in [hierarchy.frozen(), hierarchy.thawed()] {
            target.expect_refused(hierarchy.file(), value)?;
        }
        client.tell("")?;
        client
            .wait(LONG)?
            .expect(0)
            .with_context(|| dump::log(&images, "dump.log"))?;
        ensure!(!service.has_ended()?, "the service has ended");
        expect_free(&target, &workload)?;
        let last = last_guard()?;
        ensure!(last["cgroups"][0] == target.text(), "{last}");
        ensure!(last["violations"]["freeze"] == 0, "{last}");
        target.kill_all()?;
    }
    for criu in dump::named(&["criu"])? {
        kill(criu, Signal::SIGTERM)?;
    }
    service.wait(LONG)?;
    Ok(())
}

/// `criu service --daemon`: its executed process has ended before the first dump.
pub(super) fn daemon(hierarchy: Hierarchy) -> Result<()> {
    let [socket, pidfile] = ["criu.socket", "criu.pid"].map(scratch);
    let mut command = Command::new("criu");
    command
        .args(["service", "--daemon", "--address"])
        .arg(&socket);
    run(command.arg("--pidfile").arg(&pidfile))?.expect(0)?;
    eventually("criu service listens", || Ok(socket.exists()))?;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let images = scratch_folder("images")?;
    let mut command = dump_by(&target, &workload, &images);
    run(command.arg("--service").arg(&socket))?
        .expect(0)
        .with_context(|| dump::log(&images, "dump.log"))?;
    expect_free(&target, &workload)?;
    let last = last_guard()?;
    ensure!(last["cgroups"][0] == target.text(), "{last}");
    ensure!(last["automatic"] == true, "{last}");
    let pid: i32 = fs::read_to_string(&pidfile)?.trim().parse()?;
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM)?;
    target.kill_all()
}

/// A pre-dump and a dump in one process, as engines migrate: between them nothing is guarded.
pub(super) fn swrk(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    if !dump::tracks_memory()? {
        return violated::refused_by_criu(&target, &workload);
    }
    let images = scratch_folder("images")?;
    let mut command = dump_by(&target, &workload, &images);
    let mut client = Process::spawn(command.arg("--after-pre-dump"))?;
    client
        .expect_line("pre-dumped")
        .with_context(|| dump::log(&images.join("pre"), "dump.log"))?;
    eventually("the guard of the pre-dump ends", || {
        Ok(guards()?.is_empty() && last_guard()?["cgroups"][0] == target.text())
    })?;
    let first = last_guard()?["id"].clone();
    workload.expect_counting()?;
    client.tell("go on")?;
    client
        .wait(LONG)?
        .expect(0)
        .with_context(|| dump::log(&images, "dump.log"))?;
    expect_free(&target, &workload)?;
    let last = last_guard()?;
    ensure!(
        last["cgroups"][0] == target.text() && last["id"] != first,
        "{last}"
    );
    target.kill_all()
}

/// Engines that pause a container thaw it on CRIU's answer, once: the guard is over by then, and no
/// dump is blamed for the thaw. Other processes want the CPUs.
pub(in super::super) fn thaws(hierarchy: Hierarchy, times: u32) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let images = scratch_folder("images")?;
    let busy = || Process::spawn(Command::new("sh").args(["-c", "while :; do :; done"]));
    let busy = [busy()?, busy()?];
    let mut command = dump_by(&target, &workload, &images);
    let mut client = Process::spawn(command.args(["--paused", &times.to_string()]))?;
    client.close_input();
    client
        .wait(LONG + times * Duration::from_secs(10))?
        .expect(0)
        .with_context(|| dump::log(&images, "dump.log"))?;
    for process in busy {
        process.signal(Signal::SIGKILL)?;
    }
    expect_idle()?;
    let last = last_guard()?;
    ensure!(
        last["cgroups"][0] == target.text() && last["automatic"] == true,
        "{last}"
    );
    ensure!(
        last["denials"]["freeze"] == 0 && last["violations"]["freeze"] == 0,
        "{last}"
    );
    workload.expect_counting()?;
    target.kill_all()
}
