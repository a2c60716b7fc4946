//! `checkpoint` and `restore`: what becomes of images, processes and exit codes, with
//! real CRIU, undisturbed and disturbed.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, eventually, within},
    lifecycle::expect_clean,
    process::{Finished, LONG, Process, guard, guards, run},
    scratch,
    service::{property, systemctl},
};
use crate::config;

pub(super) fn list(list: &mut List<'_>) {
    // With both hierarchies CRIU takes any freezer for one of v1.
    if list.hierarchy == Hierarchy::V2 && list.config.cgroup == config::Cgroup::Hybrid {
        return;
    }
    list.add("of_a_cgroup_and_back", of_cgroup);
    list.add("of_a_pid_and_back", of_pid);
    if list.config.image == config::Image::Systemd {
        list.add("of_a_unit_and_back", of_unit);
    }
    list.add("in_steps", in_steps);
    list.add("what_is_refused_is_told", refused);
    list.add("guard_is_ended_by_force", ended);
    list.add("criu_fails", criu_fails);
    list.add("interrupted", |h| stopped(h, Signal::SIGINT));
    list.add("terminated", |h| stopped(h, Signal::SIGTERM));
    list.add("timeout", timeout);
    list.add("killed", killed);
    list.add("two_at_once", two_at_once);
    list.add("never_replaces_anything", never_replaces);
    list.add("wrong_targets", wrong_targets);
    list.add("wrong_criu", wrong_criu);
    list.add("restore_is_not_disturbed", restore_undisturbed);
    list.add("restore_fails", restore_fails);
    list.add("wrong_images", wrong_images);
    // Guards are held at one level.
    list.beside_another = false;
    list.add("violated", violated);
    list.add("violated_but_excused", excused);
    list.beside_another = true;
}

/// A workload, and a place for images of it. In the order in which they can be removed.
struct Scene {
    workload: Workload,
    cgroup: Cgroup,
    folder: PathBuf,
}

/// Files of a scene with which an action script of CRIU's and the test wait for each
/// other.
const HELD: &str = "held";
const GO: &str = "go";

impl Scene {
    fn new(hierarchy: Hierarchy) -> Result<Self> {
        Self::beside(hierarchy, None)
    }

    /// Its workload is in another cgroup too, of the other hierarchy.
    fn beside(hierarchy: Hierarchy, other: Option<&Cgroup>) -> Result<Self> {
        let cgroup = Cgroup::new(hierarchy)?;
        let cgroups: Vec<_> = [&cgroup].into_iter().chain(other).collect();
        let workload = Workload::start(&cgroups, 3)?;
        workload.expect_counting()?;
        let folder = scratch("checkpoint");
        fs::create_dir(&folder)?;
        Ok(Self {
            workload,
            cgroup,
            folder,
        })
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `freezer-guard checkpoint` of the cgroup into the folder of this name.
    fn checkpoint(&self, name: &str) -> Command {
        let mut command = Command::new("freezer-guard");
        command.arg("checkpoint").arg("--cgroup");
        command.arg(&self.cgroup.path).arg("-D");
        command.arg(self.place(name));
        command
    }

    /// `freezer-guard restore` of the folder of this name.
    fn restore(&self, name: &str) -> Command {
        let mut command = Command::new("freezer-guard");
        command.args(["restore", "-D"]).arg(self.place(name));
        command
    }

    /// An option for CRIU: a script that it runs at this stage.
    fn at_stage(&self, stage: &str, script: &str) -> Result<[String; 3]> {
        let path = self.place("script");
        let text =
            format!("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = {stage} ] || exit 0\n{script}");
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let path = path.to_str().context("a plain path")?.to_owned();
        Ok(["--".to_owned(), "--action-script".to_owned(), path])
    }

    /// Options that hold CRIU up at this stage.
    fn hold_at(&self, stage: &str) -> Result<[String; 3]> {
        let (held, go) = (self.place(HELD), self.place(GO));
        let script = format!(
            "touch {}\nwhile [ ! -e {} ]; do sleep 0.1; done\n",
            held.display(),
            go.display()
        );
        self.at_stage(stage, &script)
    }

    /// Runs it until CRIU is held up: before it freezes, under a guard.
    fn start_held(&self, command: &mut Command) -> Result<Process> {
        let mut process = Process::spawn(command.args(self.hold_at("pre-dump")?))?;
        self.wait_held(&mut process)?;
        Ok(process)
    }

    fn wait_held(&self, process: &mut Process) -> Result<()> {
        let held = self.place(HELD);
        // The kernel may have all programs to verify first.
        within(LONG, "CRIU is held up", || {
            ensure!(!process.has_ended()?, "it has ended before");
            Ok(held.exists())
        })
    }

    fn go_on(&self) -> Result<()> {
        Ok(fs::write(self.place(GO), "")?)
    }

    /// The names of what there is beside the script and its signs.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !["script", HELD, GO].contains(&&*name) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    #[track_caller]
    fn expect_names(&self, expected: &[&str]) -> Result<()> {
        let names = self.names()?;
        ensure!(names == expected, "there are {names:?}, not {expected:?}");
        Ok(())
    }

    /// That it runs on, not frozen, not guarded.
    fn expect_unharmed(&self) -> Result<()> {
        let state = self.cgroup.state()?;
        ensure!(state == "THAWED", "left {state}");
        self.workload.expect_counting()?;
        expect_clean()
    }
}

fn evidence(images: &Path) -> Result<Value> {
    let path = images.join("freezer-guard.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Its log, for a failure's report.
fn with_log(finished: Finished, code: i32, images: &Path) -> Result<Finished> {
    finished
        .expect(code)
        .with_context(|| super::dump::log(images, "dump.log"))
}

fn of_cgroup(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let since = scene.workload.counters()?;
    with_log(
        run(&mut scene.checkpoint("image"))?,
        0,
        &scene.place("image.failed"),
    )?
    .says("is good")?;
    ensure!(scene.cgroup.pids()?.is_empty(), "tasks are left");
    ensure!(scene.cgroup.state()? == "THAWED", "left frozen");
    scene.expect_names(&["image"])?;
    let evidence = evidence(&scene.place("image"))?;
    for (pointer, expected) in [
        ("/verdict", Value::from("good")),
        ("/exit_code", 0.into()),
        ("/left_running", false.into()),
        ("/pid", scene.workload.pid.into()),
        ("/cgroups/0", scene.cgroup.text().into()),
        ("/guard/violations/freeze", 0.into()),
    ] {
        let found = evidence.pointer(pointer);
        ensure!(found == Some(&expected), "{pointer} is {found:?}");
    }
    ensure!(evidence["guard"]["held_seconds"].as_f64() > Some(0.0));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(evidence["kernel"] == release.trim());
    let version = run(Command::new("criu").arg("--version"))?.stdout;
    ensure!(evidence["criu"].as_str() == version.lines().next());
    // The cgroup need not be there.
    fs::remove_dir(&scene.cgroup.path)?;
    run(&mut scene.restore("image"))?
        .expect(0)
        .with_context(|| super::dump::log(&scene.place("image"), "restore.log"))?
        .says(&format!("pid {} (guest-tool) runs", scene.workload.pid))?;
    scene.workload.expect_counting_from(&since)?;
    ensure!(
        scene.cgroup.pids()?.contains(&scene.workload.pid),
        "it is elsewhere"
    );
    scene.expect_unharmed()
}

fn of_pid(hierarchy: Hierarchy) -> Result<()> {
    // All cgroups of the process are guarded: they must not be ours.
    let other = match hierarchy == Hierarchy::V1 && Hierarchy::V2.is_here() {
        true => Some(Cgroup::new(Hierarchy::V2)?),
        false => None,
    };
    let scene = Scene::beside(hierarchy, other.as_ref())?;
    let since = scene.workload.counters()?;
    let image = scene.place("image");
    // As `mktemp -d` leaves it.
    fs::create_dir(&image)?;
    let mut command = Command::new("freezer-guard");
    command.args([
        "checkpoint",
        "--json",
        "--pid",
        &scene.workload.pid.to_string(),
    ]);
    let finished = run(command.arg("-D").arg(&image))?;
    let finished = with_log(finished, 0, &scene.place("image.failed"))?;
    let printed: Value = serde_json::from_str(&finished.stdout)?;
    ensure!(printed == evidence(&image)?, "not what is in the file");
    scene.expect_names(&["image"])?;
    let finished = run(scene.restore("image").arg("--json"))?.expect(0)?;
    let printed: Value = serde_json::from_str(&finished.stdout)?;
    ensure!(
        printed["restored"] == true && printed["roots"][0]["pid"] == scene.workload.pid,
        "{printed}"
    );
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}

/// A service that systemd has started, and that it finds again when it is restored.
fn of_unit(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let unit = super::cgroups::unique();
    let counter = scene.place("counter");
    let script = format!(
        "i=0; while :; do i=$((i+1)); echo $i > {}; sleep 0.1; done",
        counter.display()
    );
    run(Command::new("systemd-run")
        .args(["--quiet", "--unit", &unit, "-p", "StandardOutput=null"])
        .args(["-p", "StandardError=null", "-p", "StandardInput=null"])
        .args(["bash", "-c", &script]))?
    .expect(0)?;
    let count = || -> Result<u64> {
        let text = fs::read_to_string(&counter).unwrap_or_default();
        Ok(text.trim().parse().unwrap_or(0))
    };
    eventually("it counts", || Ok(count()? > 0))?;
    let pid: i32 = property(&unit, "MainPID")?.parse()?;
    let mut command = Command::new("freezer-guard");
    command.args(["checkpoint", "--leave-running", "--unit", &unit, "-D"]);
    let finished = run(command.arg(scene.place("image")))?;
    with_log(finished, 0, &scene.place("image.failed"))?;
    let evidence = evidence(&scene.place("image"))?;
    ensure!(evidence["pid"] == pid, "{evidence}");
    ensure!(property(&unit, "ActiveState")? == "active");
    systemctl(&["kill", "--signal", "SIGKILL", &unit])?.expect(0)?;
    eventually("it is gone", || Ok(property(&unit, "MainPID")? == "0"))?;
    let since = count()?;
    run(&mut scene.restore("image"))?
        .expect(0)
        .with_context(|| super::dump::log(&scene.place("image"), "restore.log"))?;
    eventually("it counts on", || Ok(count()? > since))?;
    let cgroup = evidence["cgroups"][0].as_str().context("its cgroup")?;
    for pid in fs::read_to_string(format!("{cgroup}/cgroup.procs"))?.lines() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    scene.expect_unharmed()
}

/// Two steps that let it run, one that builds on them.
fn in_steps(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let image = |name: &str| scene.place(&format!("{name}.failed"));
    let finished = run(scene.checkpoint("first").arg("--pre-dump"))?;
    with_log(finished, 0, &image("first"))?;
    scene.expect_unharmed()?;
    run(&mut scene.restore("first"))?
        .expect(64)?
        .says("it is a pre-dump")?;
    let mut second = scene.checkpoint("second");
    second.arg("--leave-running").arg("--parent");
    with_log(run(second.arg(scene.place("first")))?, 0, &image("second"))?;
    scene.expect_unharmed()?;
    let since = scene.workload.counters()?;
    let mut third = scene.checkpoint("third");
    third.arg("--parent").arg(scene.place("second"));
    with_log(run(&mut third)?, 0, &image("third"))?;
    scene.expect_names(&["first", "second", "third"])?;
    for (name, pre_dump, left_running, parent) in [
        ("first", true, true, Value::Null),
        ("second", false, true, "../first".into()),
        ("third", false, false, "../second".into()),
    ] {
        let evidence = evidence(&scene.place(name))?;
        ensure!(
            evidence["pre_dump"] == pre_dump
                && evidence["left_running"] == left_running
                && evidence["parent"] == parent,
            "{name}: {evidence}"
        );
    }
    run(&mut scene.restore("third"))?
        .expect(0)
        .with_context(|| super::dump::log(&scene.place("third"), "restore.log"))?;
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}

fn refused(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let process = scene.start_held(scene.checkpoint("image").arg("--leave-running"))?;
    // Nobody sees images before they are good.
    scene.expect_names(&["image.unfinished"])?;
    for _ in 0..3 {
        scene
            .cgroup
            .expect_refused(hierarchy.file(), hierarchy.thawed())?;
    }
    scene.go_on()?;
    with_log(process.wait(LONG)?, 0, &scene.place("image.failed"))?.says("refused 3 attempts")?;
    scene.expect_names(&["image"])?;
    let evidence = evidence(&scene.place("image"))?;
    ensure!(evidence["guard"]["denials"]["freeze"] == 3, "{evidence}");
    scene.expect_unharmed()
}

/// Somebody lets it go, and freezes it again, while nothing is refused.
fn disturb(scene: &Scene) -> Result<()> {
    scene.cgroup.thaw()?;
    scene.cgroup.freeze()
}

/// Its images are not taken for good, and it is not lost.
fn violated(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let process = scene.start_held(scene.checkpoint("image").args(["--level", "detect"]))?;
    disturb(&scene)?;
    scene.go_on()?;
    process
        .wait(LONG)?
        .expect(73)?
        .says("do not trust this checkpoint")?
        .says(&format!("thawed {}", scene.cgroup.text()))?
        .says("was left running")?;
    scene.expect_names(&["image.violated"])?;
    let evidence = evidence(&scene.place("image.violated"))?;
    ensure!(
        evidence["verdict"] == "violated" && evidence["left_running"] == true,
        "{evidence}"
    );
    scene.expect_unharmed()?;
    run(&mut scene.restore("image.violated"))?
        .expect(64)?
        .says("it was disturbed while it was made")?;
    // The place is free for one that is good.
    let finished = run(scene.checkpoint("image").arg("--leave-running"))?;
    with_log(finished, 0, &scene.place("image.failed"))?;
    scene.expect_names(&["image", "image.violated"])?;
    scene.expect_unharmed()
}

fn ended(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let process = scene.start_held(&mut scene.checkpoint("image"))?;
    guard(["end", &scene.cgroup.text(), "--force"])?.expect(0)?;
    scene.go_on()?;
    process
        .wait(LONG)?
        .expect(73)?
        .says("was ended by somebody")?
        .says("was left running")?;
    scene.expect_names(&["image.violated"])?;
    // Whoever takes the guard away takes care of the state too.
    scene.cgroup.thaw()?;
    scene.expect_unharmed()
}

fn excused(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let mut command = scene.checkpoint("image");
    command.args(["--level", "detect", "--on-violation", "warn"]);
    let process = scene.start_held(&mut command)?;
    disturb(&scene)?;
    scene.go_on()?;
    with_log(process.wait(LONG)?, 0, &scene.place("image.failed"))?.says("VIOLATED")?;
    scene.expect_names(&["image"])?;
    ensure!(scene.cgroup.pids()?.is_empty(), "tasks are left");
    expect_clean()
}

fn criu_fails(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let fail = scene.at_stage("post-dump", "exit 1\n")?;
    // CRIU 3.17 ends with 255, 4.2 with 1.
    let finished = run(scene.checkpoint("image").args(&fail))?;
    ensure!([1, 255].contains(&finished.code), "{finished:?}");
    finished
        .says("image.failed/dump.log says:")?
        .says("Error (")?
        .says("was left running")?;
    scene.expect_unharmed()?;
    run(scene.checkpoint("image").args(["--", "--no-such-option"]))?
        .expect(1)?
        .says("before it wrote anything")?;
    scene.expect_names(&["image.failed", "image.failed.2"])?;
    ensure!(evidence(&scene.place("image.failed"))?["verdict"] == "failed");
    scene.expect_unharmed()
}

fn stopped(hierarchy: Hierarchy, signal: Signal) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let process = scene.start_held(&mut scene.checkpoint("image"))?;
    process.signal(signal)?;
    process.wait(LONG)?.expect(128 + signal as i32)?;
    scene.expect_names(&["image.failed"])?;
    scene.go_on()?;
    scene.expect_unharmed()
}

fn timeout(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let process = scene.start_held(scene.checkpoint("image").args(["--timeout", "2s"]))?;
    process
        .wait(LONG)?
        .expect(128 + Signal::SIGTERM as i32)?
        .says("time is up")?;
    scene.expect_names(&["image.failed"])?;
    scene.go_on()?;
    scene.expect_unharmed()
}

/// CRIU goes on under its guard; nobody is there to call the images good.
fn killed(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let mut process = scene.start_held(scene.checkpoint("image").arg("--leave-running"))?;
    process.signal(Signal::SIGKILL)?;
    eventually("the kill", || process.has_ended())?;
    scene
        .cgroup
        .expect_refused(hierarchy.file(), hierarchy.thawed())?;
    scene.go_on()?;
    eventually("the guard goes", || Ok(guards()?.is_empty()))?;
    scene.expect_names(&["image.unfinished"])?;
    scene.cgroup.thaw()?;
    scene.expect_unharmed()?;
    // It is in nobody's way.
    let finished = run(scene.checkpoint("image").arg("--leave-running"))?;
    with_log(finished, 0, &scene.place("image.failed"))?;
    scene.expect_names(&["image", "image.unfinished"])?;
    scene.expect_unharmed()
}

fn two_at_once(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let first = scene.start_held(scene.checkpoint("image").arg("--leave-running"))?;
    for name in ["image", "another"] {
        run(&mut scene.checkpoint(name))?
            .expect(75)?
            .says(&scene.cgroup.text())?;
    }
    scene.go_on()?;
    with_log(first.wait(LONG)?, 0, &scene.place("image.failed"))?;
    scene.expect_names(&["image"])?;
    scene.expect_unharmed()
}

fn never_replaces(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let image = scene.place("image");
    fs::create_dir(&image)?;
    fs::write(image.join("precious"), "x")?;
    run(&mut scene.checkpoint("image"))?
        .expect(64)?
        .says("is there already")?;
    scene.expect_names(&["image"])?;
    // One that comes while it is being made is not replaced either.
    let first = scene.start_held(scene.checkpoint("other").arg("--leave-running"))?;
    fs::create_dir(scene.place("other"))?;
    fs::write(scene.place("other").join("precious"), "x")?;
    scene.go_on()?;
    let finished = first.wait(LONG)?;
    ensure!(finished.code != 0, "{finished:?}");
    finished.says("other.unfinished")?;
    scene.expect_names(&["image", "other", "other.unfinished"])?;
    for name in ["image", "other"] {
        ensure!(fs::read_to_string(scene.place(name).join("precious"))? == "x");
    }
    scene.expect_unharmed()
}

fn wrong_targets(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let empty = scene.cgroup.child("empty")?;
    let other = scene.cgroup.child("other")?;
    let workload = Workload::start(&[&other], 0)?;
    let checkpoint = |what: &str, which: &OsStr| {
        let mut command = Command::new("freezer-guard");
        command.args(["checkpoint", what]).arg(which).arg("-D");
        run(command.arg(scene.place("image")))
    };
    checkpoint("--cgroup", empty.path.as_os_str())?
        .expect(64)?
        .says(&empty.text())?;
    // Two trees: which of them?
    checkpoint("--cgroup", scene.cgroup.path.as_os_str())?
        .expect(64)?
        .says(&workload.pid.to_string())?
        .says(&scene.workload.pid.to_string())?
        .says("--pid")?;
    checkpoint("--cgroup", scene.place("nowhere").as_os_str())?
        .expect(64)?
        .says("nowhere")?;
    checkpoint("--pid", "4194303".as_ref())?
        .expect(64)?
        .says("4194303")?;
    // A part of a tree.
    let child = *scene
        .cgroup
        .pids()?
        .iter()
        .find(|pid| **pid != scene.workload.pid)
        .context("a child")?;
    let part = checkpoint("--pid", child.to_string().as_ref())?;
    ensure!(part.code != 0, "{part:?}");
    other.kill_all()?;
    guard(["checkpoint", "-D", "/tmp/image"])?.expect(64)?;
    guard(["checkpoint", "--cgroup", &scene.cgroup.text()])?.expect(64)?;
    let mut command = scene.checkpoint("image");
    command.arg("--parent").arg(scene.place("nowhere"));
    run(&mut command)?.expect(64)?.says("nowhere")?;
    let left: Vec<_> = scene
        .names()?
        .into_iter()
        .filter(|name| !name.starts_with("image.failed"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    scene.expect_unharmed()
}

fn wrong_criu(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let file = scene.place("script");
    fs::write(&file, "not to be executed")?;
    let file = file.to_str().context("a plain path")?;
    for (criu, code, words) in [
        ("/nowhere/criu", 127, "was not found"),
        (file, 126, file),
        ("/bin/true", 69, "is no CRIU"),
    ] {
        run(scene.checkpoint("image").args(["--criu", criu]))?
            .expect(code)?
            .says(words)?;
    }
    scene.expect_names(&[])?;
    scene.expect_unharmed()
}

fn restore_undisturbed(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let since = scene.workload.counters()?;
    with_log(
        run(&mut scene.checkpoint("image"))?,
        0,
        &scene.place("image.failed"),
    )?;
    let mut command = scene.restore("image");
    command.args(scene.hold_at("post-restore")?);
    let mut process = Process::spawn(&mut command)?;
    scene.wait_held(&mut process)?;
    scene
        .cgroup
        .expect_refused(hierarchy.file(), hierarchy.frozen())?;
    run(&mut scene.restore("image"))?
        .expect(75)?
        .says(&scene.cgroup.text())?;
    scene.go_on()?;
    process
        .wait(LONG)?
        .expect(0)
        .with_context(|| super::dump::log(&scene.place("image"), "restore.log"))?
        .says("refused 1 attempt")?;
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}

/// Its pids are taken.
fn restore_fails(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let finished = run(scene.checkpoint("image").arg("--leave-running"))?;
    with_log(finished, 0, &scene.place("image.failed"))?;
    run(&mut scene.restore("image"))?
        .expect(1)?
        .says("image/restore.log says:")?
        .says("Error (")?;
    scene.expect_names(&["image"])?;
    scene.expect_unharmed()
}

fn wrong_images(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    run(&mut scene.restore("nowhere"))?
        .expect(64)?
        .says("holds no images")?;
    // Another program has made them: what to guard?
    let images = scene.place("image");
    fs::create_dir(&images)?;
    fs::write(images.join("inventory.img"), "")?;
    run(&mut scene.restore("image"))?
        .expect(64)?
        .says("--cgroup")?;
    let finished = run(scene
        .restore("image")
        .arg("--cgroup")
        .arg(&scene.cgroup.path))?;
    ensure!(finished.code != 0, "{finished:?}");
    fs::write(images.join("freezer-guard.json"), "{")?;
    run(&mut scene.restore("image"))?.says("freezer-guard.json")?;
    scene.expect_unharmed()
}
