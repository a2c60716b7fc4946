//! Several trees, as a pod has them: their images are kept together or not at all.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{HELD, Scene, evidence};
use crate::integration::{
    List,
    cgroups::{Hierarchy, within},
    dump::log,
    process::{LONG, Process, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add_alone("several_trees", good);
    list.add_alone("several_trees_or_none", failed);
    list.add_alone("several_trees_where_one_criu_is_killed", killed);
    list.add_alone("several_trees_of_one_cgroup", overlapping);
}

/// `freezer-guard checkpoint` of both into the directory of the first.
fn checkpoint(one: &Scene, other: &Scene, name: &str) -> Command {
    let mut command = one.checkpoint(name);
    command.arg("--cgroup").arg(&other.cgroup.path);
    command
}

/// The name of a tree's directory among the images.
fn name(scene: &Scene) -> Result<String> {
    let name = scene.cgroup.path.file_name().context("a name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn good(hierarchy: Hierarchy) -> Result<()> {
    let (one, other) = (Scene::new(hierarchy)?, Scene::new(hierarchy)?);
    let left = checkpoint(&one, &other, "left")
        .arg("--leave-running")
        .status()?;
    ensure!(left.success(), "{left}");
    for scene in [&one, &other] {
        scene.expect_unharmed()?;
    }
    let since = [one.workload.counters()?, other.workload.counters()?];
    let done = run(checkpoint(&one, &other, "image").arg("--json"))?;
    let done = one.expect_good(done, "image")?;
    one.expect_names(&["image", "left"])?;
    ensure!(done.stdout.lines().count() == 2, "{}", done.stdout);
    for scene in [&one, &other] {
        ensure!(scene.cgroup.pids()?.is_empty(), "its tree has not ended");
        let image = one.place("image").join(name(scene)?);
        let evidence = evidence(&image)?;
        ensure!(
            evidence["verdict"] == "good" && evidence["pid"] == scene.workload.pid,
            "{evidence}"
        );
        // One guard for all of them.
        let cgroups = &evidence["guard"]["cgroups"];
        ensure!(
            *cgroups == json!([one.cgroup.text(), other.cgroup.text()]),
            "{cgroups}"
        );
    }
    run(&mut one.restore("image"))?
        .expect(64)?
        .says("holds the images of several trees")?;
    for (scene, since) in [&one, &other].into_iter().zip(&since) {
        let name = format!("image/{}", name(scene)?);
        run(&mut one.restore(&name))?
            .expect(0)
            .with_context(|| log(&one.place(&name), "restore.log"))?;
        scene.workload.expect_counting_from(since)?;
    }
    one.expect_unharmed()?;
    other.expect_unharmed()
}

/// CRIU cannot dump a child without the leader of its session. The other CRIU has dumped its tree by
/// then, or is about to.
fn failed(hierarchy: Hierarchy) -> Result<()> {
    let (one, other) = (Scene::new(hierarchy)?, Scene::new(hierarchy)?);
    let root = other.workload.pid;
    let pids = other.cgroup.pids()?;
    let child = pids.iter().find(|pid| **pid != root).context("a child")?;
    let mut command = one.checkpoint("image");
    let done = run(command.arg("--pid").arg(child.to_string()))?;
    ensure!(done.code != 0, "{done:?}");
    done.says("was left running")?;
    one.expect_names(&["image.failed"])?;
    let place = one.place("image.failed");
    for scene in [&one, &other] {
        let evidence = evidence(&place.join(name(scene)?))?;
        ensure!(
            evidence["verdict"] == "failed" && evidence["left_running"] == true,
            "{evidence}"
        );
        scene.expect_unharmed()?;
    }
    Ok(())
}

/// One CRIU has dumped its tree and waits for the other one, which is killed.
fn killed(hierarchy: Hierarchy) -> Result<()> {
    let (one, other) = (Scene::new(hierarchy)?, Scene::new(hierarchy)?);
    let criu = one.dir.join("script");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in dump*/{}*) echo $$ > {}; exec sleep 60;; esac\nexec criu \"$@\"\n",
        name(&other)?,
        one.place(HELD).display()
    );
    fs::write(&criu, script)?;
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o755))?;
    let mut command = checkpoint(&one, &other, "image");
    let mut process = Process::spawn(command.arg("--criu").arg(&criu))?;
    process.close_input();
    let log = one
        .place("image.unfinished")
        .join(name(&one)?)
        .join("dump.log");
    within(LONG, "its script runs", || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        Ok(log.contains("Running post-dump scripts"))
    })?;
    ensure!(!process.has_ended()?, "it does not wait");
    let pid: i32 = fs::read_to_string(one.place(HELD))?.trim().parse()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    process.wait(LONG)?.expect(137)?.says("was left running")?;
    one.expect_names(&["image.failed"])?;
    for scene in [&one, &other] {
        let evidence = evidence(&one.place("image.failed").join(name(scene)?))?;
        ensure!(evidence["verdict"] == "failed", "{evidence}");
        scene.expect_unharmed()?;
    }
    Ok(())
}

fn overlapping(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    run(&mut checkpoint(&scene, &scene, "image"))?.expect(64)?;
    let other = Scene::new(hierarchy)?;
    let mut script = checkpoint(&scene, &other, "image");
    run(script.args(scene.at_stage("post-dump", "exit 0")?))?
        .expect(64)?
        .says("--action-script")?;
    scene.expect_names(&[])?;
    scene.expect_unharmed()
}
