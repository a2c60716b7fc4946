//! The forms in which a cgroup can be named.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    mounts::Mount,
    process::{Held, guards, run},
    scratch_folder,
};
use crate::config;

pub(super) fn list(list: &mut List<'_>) {
    list.add("trailing_slash", |h| {
        let target = Cgroup::new(h)?;
        named(&target, &format!("{}/", target.text()), "/")
    });
    list.add("relative", |h| {
        let target = Cgroup::new(h)?;
        let name = target.path.strip_prefix(h.root())?.display().to_string();
        named(&target, &name, &h.root().display().to_string())?;
        named(&target, ".", &target.text())
    });
    list.add("bind_mount", bind_mount);
    list.add("beside_a_mount_without_text", |h| {
        let _mount = Mount::without_text()?;
        let target = Cgroup::new(h)?;
        named(&target, &target.text(), "/")
    });
    list.add("pid", pid);
    // Elsewhere systemd's own hierarchy has no freezer.
    if list.config.image == config::Image::Systemd && list.config.cgroup == config::Cgroup::V2 {
        list.add("systemd_unit", unit);
    }
}

/// Guards the target under this name, from this working directory.
fn named(target: &Cgroup, name: &str, from: &str) -> Result<()> {
    let mut command = Command::new("freezer-guard");
    command
        .args(["run", "--freeze", "--cgroup", name])
        .current_dir(from);
    expect_guarded(target, &mut command)
}

fn expect_guarded(target: &Cgroup, command: &mut Command) -> Result<()> {
    let mut held = Held::start(command)?;
    held.wait_held()?;
    target.expect_refused(target.hierarchy.file(), target.hierarchy.thawed())?;
    let guards = guards()?;
    let listed = guards.iter().any(|guard| {
        let cgroups = guard["cgroups"].as_array();
        cgroups.is_some_and(|paths| paths.iter().any(|path| *path == target.text()))
    });
    ensure!(listed, "{} is not in {guards:?}", target.text());
    held.release()?.expect(0)?;
    Ok(())
}

fn bind_mount(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let place = Mount::bind(&target.path, scratch_folder("bind")?)?;
    // The way it is shown depends on the mounts; that it is guarded does not.
    let mut command = Command::new("freezer-guard");
    let mut held = Held::start(command.args(["run", "--freeze", "--cgroup"]).arg(&place.0))?;
    held.wait_held()?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    Ok(())
}

/// Finds the cgroups in each hierarchy that is there.
fn pid(_: Hierarchy) -> Result<()> {
    let cgroups = [Hierarchy::V1, Hierarchy::V2]
        .into_iter()
        .filter(|hierarchy| hierarchy.is_here())
        .map(Cgroup::new)
        .collect::<Result<Vec<_>>>()?;
    let workload = Workload::start(&cgroups.iter().collect::<Vec<_>>(), 1)?;
    for target in &cgroups {
        let mut command = Command::new("freezer-guard");
        command.args(["run", "--freeze", "--pid", &workload.pid.to_string()]);
        expect_guarded(target, &mut command)?;
    }
    workload.expect_counting()
}

fn unit(hierarchy: Hierarchy) -> Result<()> {
    let unit = format!("{}.service", super::cgroups::unique());
    run(Command::new("systemd-run").args(["--unit", &unit, "sleep", "1000"]))?.expect(0)?;
    let target = Cgroup {
        hierarchy,
        path: hierarchy.root().join("system.slice").join(&unit),
    };
    let dir = scratch_folder("units")?;
    std::fs::write(dir.join(&unit), "[Service]\n")?;
    let result =
        named(&target, &unit, "/").and_then(|()| named(&target, &unit, &dir.display().to_string()));
    run(Command::new("systemctl").args(["stop", &unit]))?.expect(0)?;
    result?;
    run(Command::new("freezer-guard").args(["run", "--freeze", "--cgroup", &unit, "--", "true"]))?
        .expect(64)?
        .says(&unit)?;
    Ok(())
}
