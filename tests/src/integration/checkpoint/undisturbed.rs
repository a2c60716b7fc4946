//! Nobody is in the way: checkpoints of all that can be named, and their restores.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    super::{
        List,
        cgroups::{Cgroup, Hierarchy, eventually, unique},
        dump::log,
        process::{expect_version, run},
        service::{property, systemctl},
    },
    Scene, evidence, for_pids,
};
use crate::config;

pub(super) fn list(list: &mut List<'_>) {
    list.add("of_a_cgroup_and_back", |h| of_cgroup(&Scene::new(h)?));
    list.add("of_a_cgroup_without_text_and_back", |h| {
        of_cgroup(&Scene::of(Cgroup::without_text(h)?, None)?)
    });
    list.add("of_a_pid_and_back", of_pid);
    list_unit(list);
    list.add("in_steps", in_steps);
    list.add("a_parent_is_built_on_once", built_on_once);
    if criu_has(IO_MODE) {
        list.add("past_the_page_cache_and_back", past_the_page_cache);
    }
}

/// CRIU 4.3 has it. (Debian's 4.3 cannot compress images, which is another new option.)
const IO_MODE: &str = "--image-io-mode";

fn criu_has(option: &str) -> bool {
    run(Command::new("criu").arg("--help"))
        .is_ok_and(|help| [help.stdout, help.stderr].concat().contains(option))
}

fn past_the_page_cache(hierarchy: Hierarchy) -> Result<()> {
    let options = [IO_MODE, "direct"];
    let scene = Scene::new(hierarchy)?;
    let since = scene.workload.counters()?;
    let finished = run(scene.checkpoint("image").arg("--").args(options))?;
    scene.expect_good(finished, "image")?.says("is good")?;
    run(scene.restore("image").arg("--").args(options))?
        .expect(0)
        .with_context(|| log(&scene.place("image"), "restore.log"))?;
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}

/// What takes systemd.
pub(super) fn list_unit(list: &mut List<'_>) {
    if list.config.image == config::Image::Systemd {
        list.add("of_a_unit_and_back", of_unit);
    }
}

fn of_cgroup(scene: &Scene) -> Result<()> {
    let since = scene.workload.counters()?;
    scene
        .expect_good(run(&mut scene.checkpoint("image"))?, "image")?
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
        .with_context(|| log(&scene.place("image"), "restore.log"))?
        .says(&format!("pid {} (guest-tool) runs", scene.workload.pid))?;
    scene.workload.expect_counting_from(&since)?;
    ensure!(
        scene.cgroup.pids()?.contains(&scene.workload.pid),
        "it is elsewhere"
    );
    scene.expect_unharmed()
}

fn of_pid(hierarchy: Hierarchy) -> Result<()> {
    let other = for_pids(hierarchy)?;
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
    let finished = scene.expect_good(finished, "image")?;
    let printed: Value = serde_json::from_str(&finished.stdout)?;
    ensure!(printed == evidence(&image)?, "not what is in the file");
    expect_version(&printed)?;
    scene.expect_names(&["image"])?;
    let finished = run(scene.restore("image").arg("--json"))?.expect(0)?;
    let printed: Value = serde_json::from_str(&finished.stdout)?;
    expect_version(&printed)?;
    ensure!(
        printed["restored"] == true && printed["roots"][0]["pid"] == scene.workload.pid,
        "{printed}"
    );
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}

/// A service that systemd has started, and that counts in a file.
pub(super) struct Counting {
    pub(super) name: String,
    pub(super) pid: i32,
    counter: PathBuf,
}

impl Counting {
    pub(super) fn start(scene: &Scene) -> Result<Self> {
        let name = unique();
        let counter = scene.place(&name);
        // CRIU restores no open file whose size has changed.
        let script = format!(
            "i=0; while :; do i=$((i+1)); printf %020d $i 1<> {}; sleep 0.1; done",
            counter.display()
        );
        run(Command::new("systemd-run")
            .args(["--quiet", "--unit", &name, "-p", "StandardOutput=null"])
            .args(["-p", "StandardError=null", "-p", "StandardInput=null"])
            .args(["bash", "-c", &script]))?
        .expect(0)?;
        let pid = property(&name, "MainPID")?.parse()?;
        let unit = Self { name, pid, counter };
        eventually("it counts", || Ok(unit.count()? > 0))?;
        Ok(unit)
    }

    pub(super) fn count(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.counter).unwrap_or_default();
        Ok(text.trim().parse().unwrap_or(0))
    }

    pub(super) fn stop(&self) -> Result<()> {
        systemctl(&["kill", "--signal", "SIGKILL", &self.name])?.expect(0)?;
        eventually("it is gone", || Ok(property(&self.name, "MainPID")? == "0"))
    }
}

/// The restored tree is in the cgroup of the service, and its own master: the unit has ended.
fn of_unit(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let unit = Counting::start(&scene)?;
    let mut command = Command::new("freezer-guard");
    command.args(["checkpoint", "--leave-running", "--unit", &unit.name, "-D"]);
    scene.expect_good(run(command.arg(scene.place("image")))?, "image")?;
    let evidence = evidence(&scene.place("image"))?;
    ensure!(evidence["pid"] == unit.pid, "{evidence}");
    ensure!(property(&unit.name, "ActiveState")? == "active");
    unit.stop()?;
    let since = unit.count()?;
    run(&mut scene.restore("image"))?
        .expect(0)
        .with_context(|| log(&scene.place("image"), "restore.log"))?;
    eventually("it counts on", || Ok(unit.count()? > since))?;
    let cgroup = evidence["cgroups"][0].as_str().context("its cgroup")?;
    let pids = fs::read_to_string(format!("{cgroup}/cgroup.procs"))?;
    ensure!(
        pids.lines().any(|line| line == unit.pid.to_string()),
        "it is elsewhere"
    );
    for pid in pids.lines() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    scene.expect_unharmed()
}

/// Two steps that let it run, one that builds on them.
fn in_steps(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    if !scene.tracks_memory()? {
        return Ok(());
    }
    let finished = run(scene.checkpoint("first").arg("--pre-dump"))?;
    scene.expect_good(finished, "first")?;
    scene.expect_unharmed()?;
    run(&mut scene.restore("first"))?
        .expect(64)?
        .says("it is a pre-dump")?;
    let mut second = scene.checkpoint("second");
    second.arg("--leave-running").arg("--parent");
    scene.expect_good(run(second.arg(scene.place("first")))?, "second")?;
    scene.expect_unharmed()?;
    let since = scene.workload.counters()?;
    let mut third = scene.checkpoint("third");
    third.arg("--parent").arg(scene.place("second"));
    scene.expect_good(run(&mut third)?, "third")?;
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
        .with_context(|| log(&scene.place("third"), "restore.log"))?;
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}

/// What an attempt has cleared the kernel's marks of is not in a next one on the same
/// parent.
fn built_on_once(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    if !scene.tracks_memory()? {
        return Ok(());
    }
    let finished = run(scene.checkpoint("first").arg("--pre-dump"))?;
    scene.expect_good(finished, "first")?;
    let on_first = |name: &str| {
        let mut command = scene.checkpoint(name);
        command.arg("--parent").arg(scene.place("first"));
        command
    };
    let finished = run(on_first("second").args(scene.at_stage("post-dump", "exit 1\n")?))?;
    ensure!([1, 255].contains(&finished.code), "{finished:?}");
    scene.expect_unharmed()?;
    run(&mut on_first("third"))?
        .expect(64)?
        .says("another checkpoint was already begun on")?
        .says("start anew without --parent")?;
    scene.expect_names(&["first", "second.failed"])?;
    // Nor is it an image of another tree.
    let other = Scene::new(hierarchy)?;
    let mut command = other.checkpoint("image");
    command.arg("--parent").arg(scene.place("first"));
    run(&mut command)?
        .expect(64)?
        .says(&format!("of pid {}", scene.workload.pid))?;
    other.expect_names(&[])?;
    scene.expect_unharmed()
}
