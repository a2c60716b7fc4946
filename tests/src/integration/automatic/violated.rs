//! A dump that was violated under an automatic guard fails, and its tasks go on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload, unique},
        dump,
        process::{LONG, Process, guards, last_guard, run, tool},
        scratch_folder,
        service::{CONFIG, eventually, expect_idle, systemctl},
    },
    FakeCriu, armed, sh, write,
};

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

/// The holder of a violated guard can write any file but one.
pub(super) fn inventory(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let images = scratch_folder("images")?;
    let [inventory, other] = ["inventory.img", "inventory.imgs"].map(|name| images.join(name));
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
    let before = fs::read_to_string(CONFIG)?;
    fs::write(CONFIG, "[automatic]\non_violation = \"warn\"\n")?;
    systemctl(&["reload", "freezer-guard"])?.expect(0)?;
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
    expect_idle()?;
    fs::write(CONFIG, before)?;
    systemctl(&["reload", "freezer-guard"])?.expect(0)?;
    Ok(())
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
    /// Lets CRIU wait there, with arguments of strace.
    fn wait(self, target: &Cgroup) -> (&'static str, PathBuf) {
        match self {
            Self::BeforeTheSeize => ("inject=write:delay_exit=2000000", target.freezer()),
            Self::BeforeTheInventory => (
                "inject=openat:delay_enter=4000000",
                PathBuf::from("inventory.img"),
            ),
        }
    }
}

/// A real dump, by a process that is no descendant of ours.
pub(super) fn dump_fails(hierarchy: Hierarchy, moment: Moment, more: &[&str]) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 3)?;
    workload.expect_counting()?;
    let images = scratch_folder("images")?;
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--wait", "--unit"]);
    command.arg(format!("{}.service", unique()));
    let (inject, path) = moment.wait(&target);
    command.args(["strace", "-o", "/dev/null", "-e", inject, "-P"]);
    command.arg(path);
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
    let images = scratch_folder("images")?;
    let mut command = Command::new("env");
    dump::criu_dump(&mut command, workload.pid, &target, &images);
    run(&mut command)?
        .expect(0)
        .with_context(|| dump::log(&images, "dump.log"))?;
    expect_idle()?;
    target.kill_all()
}
