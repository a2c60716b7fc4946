//! Several trees, as a pod has them: their images are kept together or not at all.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{HELD, Scene, evidence, for_pids, undisturbed::Counting};
use crate::config;
use crate::integration::{
    List,
    cgroups::{Hierarchy, Workload, eventually, within},
    dump::log,
    mounts::Mount,
    process::{LONG, Process, guard, guards, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add_alone("several_trees", good);
    list.add_alone("several_trees_or_none", failed);
    list.add_alone("several_trees_where_one_criu_is_killed", killed);
    list.add_alone("several_trees_and_one_checkpoint_is_killed", interrupted);
    list.add_alone("several_trees_disturbed_while_one_waits", violated);
    list.add_alone("several_trees_and_a_full_disk", full_disk);
    list.add_alone("several_trees_in_steps", in_steps);
    list.add_alone("several_trees_of_one_cgroup", overlapping);
    list.add("several_trees_that_overlap", inside);
    list_unit(list);
}

/// What takes systemd.
pub(super) fn list_unit(list: &mut List<'_>) {
    if list.config.image == config::Image::Systemd {
        list.add_alone("several_units", units);
    }
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
    done.says("was left running")?
        .says(&format!("pid {child} (guest-tool) failed"))?;
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

/// A checkpoint of two trees. The CRIU of the first tree has dumped it, and waits for that of the other
/// tree, which a script in its place holds up.
struct Waiting {
    one: Scene,
    other: Scene,
    process: Process,
    /// The script.
    pid: Pid,
}

impl Waiting {
    /// `then`: the end of the script, once it may go on.
    fn start(hierarchy: Hierarchy, options: &[&str], then: &str) -> Result<Self> {
        let (one, other) = (Scene::new(hierarchy)?, Scene::new(hierarchy)?);
        let criu = one.dir.join("script");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in dump*/{}*) echo $$ > {}; {then};; esac\nexec criu \"$@\"\n",
            name(&other)?,
            one.place(HELD).display()
        );
        fs::write(&criu, script)?;
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755))?;
        let mut command = checkpoint(&one, &other, "image");
        let mut process = Process::spawn(command.args(options).arg("--criu").arg(&criu))?;
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
        Ok(Self {
            one,
            other,
            process,
            pid: Pid::from_raw(pid),
        })
    }

    fn kill_other_criu(&self) -> Result<()> {
        Ok(kill(self.pid, Signal::SIGKILL)?)
    }
}

/// One CRIU has dumped its tree and waits for the other one, which is killed.
fn killed(hierarchy: Hierarchy) -> Result<()> {
    let waiting = Waiting::start(hierarchy, &[], "exec sleep 60")?;
    waiting.kill_other_criu()?;
    let Waiting {
        one,
        other,
        process,
        ..
    } = waiting;
    let because = format!(
        "the checkpoint of pid {} (guest-tool) failed",
        other.workload.pid
    );
    process
        .wait(LONG)?
        .expect(137)?
        .says("was left running")?
        .says(&because)?;
    one.expect_names(&["image.failed"])?;
    for scene in [&one, &other] {
        let evidence = evidence(&one.place("image.failed").join(name(scene)?))?;
        ensure!(evidence["verdict"] == "failed", "{evidence}");
        scene.expect_unharmed()?;
    }
    let trees = format!("image.failed/{}", name(&other)?);
    run(&mut one.restore("image"))?.expect(64)?.says(&trees)?;
    Ok(())
}

/// SIGKILL of freezer-guard: no CRIU ends its tree, and the leftovers are named.
fn interrupted(hierarchy: Hierarchy) -> Result<()> {
    let waiting = Waiting::start(hierarchy, &[], "exec sleep 60")?;
    waiting.process.signal(Signal::SIGKILL)?;
    waiting.kill_other_criu()?;
    let Waiting {
        one,
        other,
        process,
        ..
    } = waiting;
    process.wait(LONG)?.expect(137)?;
    within(LONG, "the guard goes", || Ok(guards()?.is_empty()))?;
    one.expect_names(&["image.unfinished"])?;
    for scene in [&one, &other] {
        scene.cgroup.thaw()?;
        scene.expect_unharmed()?;
    }
    let image = one.place("image").display().to_string();
    let unfinished = format!("{image}.unfinished");
    let trees = [
        format!("{unfinished}/{}", name(&one)?),
        format!("{unfinished}/{}", name(&other)?),
    ];
    for place in [&image, &unfinished] {
        for command in [["report", place].as_slice(), &["restore", "-D", place]] {
            let done = guard(command)?.expect(64)?;
            trees.iter().try_fold(done, |done, tree| done.says(tree))?;
        }
    }
    for tree in &trees {
        let report = guard(["report", tree])?.expect(0)?.stdout;
        ensure!(report.contains("unfinished"), "{report}");
        guard(["restore", "-D", tree])?
            .expect(64)?
            .says("interrupted")?;
    }
    Ok(())
}

/// A disturbance after one dump, and before the other one.
fn violated(hierarchy: Hierarchy) -> Result<()> {
    let go = "while [ ! -e ${0%/*}/go ]; do sleep 0.1; done";
    let waiting = Waiting::start(hierarchy, &["--level", "detect"], go)?;
    let Waiting {
        one,
        other,
        process,
        ..
    } = waiting;
    one.cgroup
        .expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    one.cgroup.thaw()?;
    one.go_on()?;
    process
        .wait(LONG)?
        .expect(73)?
        .says("do not trust this checkpoint")?
        .says("was left running")?;
    one.expect_names(&["image.violated"])?;
    for scene in [&one, &other] {
        let evidence = evidence(&one.place("image.violated").join(name(scene)?))?;
        ensure!(
            evidence["verdict"] == "violated" && evidence["left_running"] == true,
            "{evidence}"
        );
        scene.expect_unharmed()?;
    }
    Ok(())
}

/// There is room for the evidence, and none for the memory.
fn full_disk(hierarchy: Hierarchy) -> Result<()> {
    let (one, other) = (Scene::new(hierarchy)?, Scene::new(hierarchy)?);
    let disk = one.place("disk");
    fs::create_dir(&disk)?;
    let tmpfs = Mount::new("tmpfs", disk.clone(), Some("size=400k"))?;
    let done = run(&mut checkpoint(&one, &other, "disk/image"))?;
    ensure!([1, 255].contains(&done.code), "{done:?}");
    done.says("was left running")?
        .says("No space left on device")?;
    ensure!(!disk.join("image").exists(), "it was published");
    for scene in [&one, &other] {
        let evidence = evidence(&disk.join("image.failed").join(name(scene)?))?;
        ensure!(evidence["verdict"] == "failed", "{evidence}");
        scene.expect_unharmed()?;
    }
    drop(tmpfs);
    fs::remove_dir(&disk)?;
    one.expect_names(&[])
}

/// The memory of both first, and then the changes since.
fn in_steps(hierarchy: Hierarchy) -> Result<()> {
    let (one, other) = (Scene::new(hierarchy)?, Scene::new(hierarchy)?);
    if !one.tracks_memory()? {
        return Ok(());
    }
    let first = run(checkpoint(&one, &other, "first").arg("--pre-dump"))?;
    one.expect_good(first, "first")?;
    let since = [one.workload.counters()?, other.workload.counters()?];
    let mut second = checkpoint(&one, &other, "second");
    let second = run(second.arg("--parent").arg(one.place("first")))?;
    one.expect_good(second, "second")?;
    one.expect_names(&["first", "second"])?;
    for (scene, since) in [&one, &other].into_iter().zip(&since) {
        let name = name(scene)?;
        ensure!(evidence(&one.place("first").join(&name))?["pre_dump"] == true);
        let place = format!("second/{name}");
        let parent = &evidence(&one.place(&place))?["parent"];
        ensure!(*parent == format!("../../first/{name}"), "{parent}");
        run(&mut one.restore(&place))?
            .expect(0)
            .with_context(|| log(&one.place(&place), "restore.log"))?;
        scene.workload.expect_counting_from(since)?;
    }
    // Nothing can be built on the first image any more, be it of one tree only.
    let mut third = one.checkpoint("third");
    let parent = one.place("first").join(name(&one)?);
    run(third.arg("--parent").arg(parent))?
        .expect(64)?
        .says("another checkpoint was already begun on")?;
    one.expect_unharmed()?;
    other.expect_unharmed()
}

/// Two services of systemd's.
fn units(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let units = [Counting::start(&scene)?, Counting::start(&scene)?];
    let mut command = Command::new("freezer-guard");
    command.args(["checkpoint", "--leave-running", "-D"]);
    command.arg(scene.place("image"));
    for unit in &units {
        command.args(["--unit", &unit.name]);
    }
    scene.expect_good(run(&mut command)?, "image")?;
    for unit in &units {
        let image = scene.place("image").join(format!("{}.service", unit.name));
        let evidence = evidence(&image)?;
        ensure!(
            evidence["verdict"] == "good" && evidence["pid"] == unit.pid,
            "{evidence}"
        );
        let since = unit.count()?;
        eventually("it counts on", || Ok(unit.count()? > since))?;
    }
    // A unit that is named twice, once by its cgroup.
    let cgroup = Hierarchy::V2.root().join("system.slice");
    let cgroup = cgroup.join(format!("{}.service", units[0].name));
    let mut twice = Command::new("freezer-guard");
    twice.args(["checkpoint", "--unit", &units[0].name, "--cgroup"]);
    let twice = twice.arg(&cgroup).arg("-D").arg(scene.place("twice"));
    let said = format!("--unit {} name the same process tree", units[0].name);
    run(twice)?.expect(64)?.says(&said)?;
    for unit in units {
        unit.stop()?;
    }
    scene.expect_unharmed()
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

/// A tree that is named twice, a part of a tree, a tree in the cgroup of another one.
fn inside(hierarchy: Hierarchy) -> Result<()> {
    let in_v2 = for_pids(hierarchy)?;
    let scene = Scene::beside(hierarchy, in_v2.as_ref())?;
    let (root, cgroup) = (scene.workload.pid.to_string(), scene.cgroup.text());
    let refuse = |names: &[&str], words: &[String]| -> Result<()> {
        let mut command = Command::new("freezer-guard");
        command.args(["checkpoint", "-D"]).arg(scene.place("image"));
        let done = run(command.args(names))?.expect(64)?;
        words
            .iter()
            .try_fold(done, |done, words| done.says(words))?;
        scene.expect_names(&[])
    };
    refuse(
        &["--pid", &root, "--cgroup", &cgroup],
        &[format!(
            "--pid {root} and --cgroup {cgroup} name the same process tree, that of pid {root} (guest-tool)"
        )],
    )?;
    let part = *scene
        .cgroup
        .pids()?
        .iter()
        .find(|pid| **pid != scene.workload.pid)
        .context("a child")?;
    refuse(
        &["--pid", &part.to_string(), "--cgroup", &cgroup],
        &[
            format!("pid {part} (guest-tool), the root of --pid {part}, descends from"),
            format!("pid {root} (guest-tool), the root of --cgroup {cgroup}"),
        ],
    )?;
    let inner = scene.cgroup.child("inner")?;
    let workload = Workload::start(&[&inner], 0)?;
    for outer in [["--pid", &root], ["--cgroup", &cgroup]] {
        if outer[0] == "--pid" && in_v2.is_some() {
            // The tree has a cgroup on v2 for itself, and the other one has its own on v1.
            let mut both = Command::new("freezer-guard");
            both.args(["checkpoint", "-R", "--cgroup", &inner.text()]);
            run(both.args(outer).arg("-D").arg(scene.place("image")))?.expect(0)?;
            fs::remove_dir_all(scene.place("image"))?;
            continue;
        }
        refuse(
            &[&outer[..], &["--cgroup", &inner.text()]].concat(),
            &[
                format!(
                    "pid {} (guest-tool), the root of --cgroup {},",
                    workload.pid,
                    inner.text()
                ),
                format!("of {}, or below it", outer.join(" ")),
            ],
        )?;
    }
    inner.kill_all()?;
    drop(inner);
    // A part of a tree in the cgroup of the other one.
    let other = Scene::new(hierarchy)?;
    let pids = other.cgroup.pids()?;
    let stray = pids.iter().find(|pid| **pid != other.workload.pid);
    let stray = stray.context("a child")?.to_string();
    scene.cgroup.write("cgroup.procs", &stray)?;
    let mut command = other.checkpoint("image");
    run(command.args(["--pid", &root]))?
        .expect(75)?
        .says(&format!(
            "not all tasks of the checkpoint are in {}",
            other.cgroup.text()
        ))?
        .says(&format!("pid {stray} (guest-tool) is in"))?;
    other.cgroup.write("cgroup.procs", &stray)?;
    other.expect_names(&[])?;
    other.expect_unharmed()?;
    scene.expect_unharmed()
}
