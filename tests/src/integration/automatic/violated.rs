//! A dump that was violated under an automatic guard fails, and its tasks go on.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload},
        configured::Configured,
        dump,
        process::{Held, LONG, Process, guards, last_guard, run, tool},
        scratch_folder,
        service::{eventually, expect_idle, is_attached, main_pid, systemctl},
    },
    FakeCriu, armed,
    dumps::{by_engine, dumped},
    sh, write,
};
use crate::sys::{open_map, set_entry};

/// Clears the dirty bits of a task. Nothing refuses that.
fn violate(pid: i32) -> Result<()> {
    tool(["access", "clear_refs", &pid.to_string()])?.expect(0)?;
    let guard = guards()?.pop().unwrap_or_default();
    ensure!(guard["violations"]["ptrace"] == 1, "{guard}");
    Ok(())
}

fn write_file(path: &Path) -> String {
    format!("echo image > {}", path.display())
}

/// The holder of a violated guard can write any file but those of images.
pub(super) fn inventory(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let images = scratch_folder("images")?;
    let [inventory, other] = ["inventory.img", "dump.log"].map(|name| images.join(name));
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    armed()?;
    let mut undisturbed = FakeCriu::new()?.start()?;
    sh(&mut criu, &write_file(&inventory))?;
    violate(workload.pid)?;
    sh(&mut criu, &write_file(&other))?;
    criu.tell(&write_file(&inventory))?;
    let said = criu.line()?;
    ensure!(said == "rc 1", "it wrote {}: {said}", inventory.display());
    // Anybody else's image is none of ours.
    sh(&mut undisturbed, &write_file(&inventory))?;
    fs::write(&inventory, "ours")?;
    sh(&mut criu, &write(&target, hierarchy.thawed()))?;
    for mut process in [criu, undisturbed] {
        process.close_input();
        process.wait(LONG)?.expect(0)?;
    }
    expect_idle()
}

/// An administrator wants the image all the same.
pub(super) fn warns(hierarchy: Hierarchy) -> Result<()> {
    let _configured = Configured::new("[automatic]\non_violation = \"warn\"\n")?;
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let images = scratch_folder("images")?;
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    armed()?;
    violate(workload.pid)?;
    sh(&mut criu, &write_file(&images.join("inventory.img")))?;
    sh(&mut criu, &write(&target, hierarchy.thawed()))?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()
}

/// When a dump is disturbed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Moment {
    /// CRIU has frozen the cgroup, and seized nothing.
    BeforeTheSeize,
    /// CRIU is about to make `inventory.img`.
    BeforeTheInventory,
}

impl Moment {
    /// The begin of a command that lets CRIU wait there.
    fn wait(self, target: &Cgroup) -> Command {
        let inventory = Path::new("inventory.img");
        match self {
            Self::BeforeTheSeize => {
                by_engine("inject=write:delay_exit=2000000", Some(&target.freezer()))
            }
            Self::BeforeTheInventory => {
                by_engine("inject=openat:delay_enter=8000000", Some(inventory))
            }
        }
    }
}

/// A real dump, by a process that is no descendant of ours.
pub(super) fn dump_fails(hierarchy: Hierarchy, moment: Moment, more: &[&str]) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 3)?;
    workload.expect_counting()?;
    let images = scratch_folder("images")?;
    let mut command = moment.wait(&target);
    dump::criu_dump(&mut command, workload.pid, &target, &images);
    command.args(["--timeout", "100"]).args(more);
    let mut engine = Process::spawn(&mut command)?;
    armed()?;
    if moment == Moment::BeforeTheInventory {
        eventually("the tasks are dumped", || {
            Ok(images.join("pstree.img").exists())
        })?;
    }
    violate(workload.pid)?;
    engine.close_input();
    let finished = engine.wait(LONG)?;
    ensure!(
        finished.code != 0,
        "the dump is called good: {}",
        dump::log(&images, "dump.log")
    );
    expect_idle()?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    workload
        .expect_counting()
        .with_context(|| dump::log(&images, "dump.log"))?;
    let inventory = fs::read(images.join("inventory.img")).unwrap_or_default();
    ensure!(inventory.is_empty(), "the image is complete");
    let last = last_guard()?;
    ensure!(last["violations"]["ptrace"] == 1, "{last}");
    // Nothing of it is in the way of the next dump.
    dumped(&target, &workload)?;
    target.kill_all()
}

/// The memory that an incremental dump begins with.
pub(super) fn pre_dump_fails(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    workload.expect_counting()?;
    if !dump::tracks_memory()? {
        return refused_by_criu(&target, &workload);
    }
    let images = scratch_folder("images")?;
    let mut command = Moment::BeforeTheSeize.wait(&target);
    command.args([
        "criu",
        "pre-dump",
        "-o",
        "dump.log",
        "-v4",
        "--timeout",
        "100",
    ]);
    command.args(["--track-mem", "-t", &workload.pid.to_string(), "-D"]);
    command
        .arg(&images)
        .arg("--freeze-cgroup")
        .arg(&target.path);
    let mut engine = Process::spawn(&mut command)?;
    armed()?;
    violate(workload.pid)?;
    engine.close_input();
    let finished = engine.wait(LONG)?;
    let log = || dump::log(&images, "dump.log");
    ensure!(finished.code != 0, "the pre-dump is called good: {}", log());
    expect_idle()?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    workload.expect_counting().with_context(log)
}

/// CRIU refuses a pre-dump where it cannot tell which memory has changed, and the tasks go on.
pub(super) fn refused_by_criu(target: &Cgroup, workload: &Workload) -> Result<()> {
    let mut criu = Command::new("criu");
    criu.args([
        "pre-dump",
        "-o",
        "dump.log",
        "-t",
        &workload.pid.to_string(),
    ]);
    criu.arg("-D").arg(scratch_folder("images")?);
    criu.arg("--freeze-cgroup").arg(&target.path);
    let finished = run(&mut criu)?;
    ensure!(finished.code != 0, "CRIU made a pre-dump");
    expect_idle()?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    workload.expect_counting()?;
    target.kill_all()
}

/// The kernel side has no room for the record of a guard that ends while the service is stopped.
pub(super) fn without_room(hierarchy: Hierarchy) -> Result<()> {
    const ROOM: u64 = 1024;
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    let id = guards()?.pop().unwrap_or_default()["id"].clone();
    let service = main_pid()?;
    kill(service, Signal::SIGSTOP)?;
    let ended = open_map(c"/sys/fs/bpf/freezer-guard/ENDED")?;
    (0..ROOM).try_for_each(|key| set_entry(&ended, key, true))?;
    held.process().signal(Signal::SIGKILL)?;
    held.process().close_input();
    eventually("the guard goes", || Ok(target.thaw().is_ok()))?;
    kill(service, Signal::SIGCONT)?;
    eventually("its record is read", || Ok(last_guard()?["id"] == id))?;
    expect_idle()
}

/// The tripwire is there before the guard, and before the call.
pub(super) fn copy_under_way(hierarchy: Hierarchy) -> Result<()> {
    let is_noticed = is_attached("process_vm_exit");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // Older kernels attach nothing to a function with so many arguments.
    ensure!(is_noticed != release.starts_with("6.1."), "{release}");
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let mut command = Command::new("guest-tool");
    command.args(["access", "stalled_vm", &workload.pid.to_string()]);
    let mut writer = Process::spawn(&mut command)?;
    writer.expect_line("ready")?;
    let held = Held::new(&[&target])?;
    writer.tell("go")?;
    writer.wait(LONG)?.expect(0)?;
    let what = format!("wrote to the memory of pid {}", workload.pid);
    match is_noticed {
        true => held.release()?.expect(73)?.says(&what)?,
        false => held.release()?.expect(0)?,
    };
    workload.expect_counting()?;
    expect_idle()
}
