//! Somebody is in the way, CRIU fails, or it is told to stop.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount, umount},
    sys::signal::Signal,
};

use super::{
    super::{
        List,
        cgroups::{Hierarchy, eventually, within},
        dump::log,
        lifecycle::expect_clean,
        process::{LONG, Process, guard, guards, run},
    },
    Scene, evidence,
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("what_is_refused_is_told", refused);
    // Guards are held at one level.
    list.add_alone("violated", violated);
    list.add_alone("violated_but_excused", excused);
    list.add("guard_is_ended_by_force", ended);
    list.add("criu_fails", criu_fails);
    list.add("interrupted", |h| stopped(h, Signal::SIGINT));
    list.add("terminated", |h| stopped(h, Signal::SIGTERM));
    list.add("timeout", timeout);
    list.add("killed", killed);
    list.add("killed_when_the_images_are_complete", killed_late);
    list.add("disk_is_full_at_the_end", full_disk);
    list.add("two_at_once", two_at_once);
    list.add("restore_is_not_disturbed", restore_undisturbed);
    list.add_alone("restore_is_violated", restore_violated);
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
    scene
        .expect_good(process.wait(LONG)?, "image")?
        .says("refused 3 attempts")?;
    scene.expect_names(&["image"])?;
    let evidence = evidence(&scene.place("image"))?;
    ensure!(evidence["guard"]["denials"]["freeze"] == 3, "{evidence}");
    scene.expect_unharmed()
}

/// Somebody lets it go, and freezes it again, while nothing is refused.
pub(super) fn disturb(scene: &Scene) -> Result<()> {
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
        .says("another process disturbed its checkpoint")?;
    // The place is free for one that is good.
    scene.expect_good(
        run(scene.checkpoint("image").arg("--leave-running"))?,
        "image",
    )?;
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
        .says("another process ended the guard")?
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
    scene
        .expect_good(process.wait(LONG)?, "image")?
        .says("VIOLATED")?;
    scene.expect_names(&["image"])?;
    ensure!(evidence(&scene.place("image"))?["verdict"] == "excused");
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
    let process = scene.start_held(scene.checkpoint("image").args(["--timeout", "20s"]))?;
    process
        .wait(LONG)?
        .expect(128 + Signal::SIGTERM as i32)?
        .says("--timeout has passed")?;
    scene.expect_names(&["image.failed"])?;
    scene.go_on()?;
    scene.expect_unharmed()
}

/// CRIU goes on under its guard; but nobody is there to call the images good, so the tree
/// runs on.
fn killed(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let mut process = scene.start_held(&mut scene.checkpoint("image"))?;
    process.signal(Signal::SIGKILL)?;
    eventually("the kill", || process.has_ended())?;
    scene
        .cgroup
        .expect_refused(hierarchy.file(), hierarchy.thawed())?;
    scene.go_on()?;
    within(LONG, "the guard goes", || Ok(guards()?.is_empty()))?;
    scene.expect_names(&["image.unfinished"])?;
    scene.cgroup.thaw()?;
    scene.expect_unharmed()?;
    run(&mut scene.restore("image"))?
        .expect(64)?
        .says("has left")?
        .says("image.unfinished")?;
    run(&mut scene.restore("image.unfinished"))?
        .expect(64)?
        .says("was interrupted or still runs")?;
    // It is in nobody's way.
    scene.expect_good(
        run(scene.checkpoint("image").arg("--leave-running"))?,
        "image",
    )?;
    scene.expect_names(&["image", "image.unfinished"])?;
    scene.expect_unharmed()
}

/// The tree has ended, so its image is all that is left of it.
fn killed_late(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let mut process = scene.start_held(&mut scene.checkpoint("image"))?;
    // It does none of its work after CRIU.
    process.signal(Signal::SIGSTOP)?;
    scene.go_on()?;
    within(LONG, "CRIU ends the tree", || {
        Ok(scene.cgroup.pids()?.is_empty())
    })?;
    process.signal(Signal::SIGKILL)?;
    eventually("the kill", || process.has_ended())?;
    within(LONG, "the guard goes", || Ok(guards()?.is_empty()))?;
    scene.expect_names(&["image.unfinished"])?;
    ensure!(evidence(&scene.place("image.unfinished"))?["verdict"] == "good");
    run(&mut scene.restore("image"))?
        .expect(64)?
        .says("image.unfinished, complete: once it has ended, restore from there")?;
    run(&mut scene.restore("image.unfinished"))?
        .expect(0)
        .with_context(|| log(&scene.place("image.unfinished"), "restore.log"))?;
    scene.expect_unharmed()
}

/// Its evidence has its place from the start.
fn full_disk(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let disk = scene.place("disk");
    fs::create_dir(&disk)?;
    let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
    mount(kind, &disk, kind, flags, Some("size=64m"))?;
    let fill = disk.join("fill");
    let script = format!(
        "dd if=/dev/zero of={} bs=4k 2>/dev/null\nexit 0\n",
        fill.display()
    );
    let fills = scene.at_stage("post-dump", &script)?;
    run(scene.checkpoint("disk/image").args(&fills))?
        .expect(0)
        .with_context(|| log(&scene.place("disk/image.failed"), "dump.log"))?;
    let images = scene.place("disk/image");
    ensure!(fill.metadata()?.len() > 0, "the disk was not filled");
    ensure!(evidence(&images)?["verdict"] == "good");
    fs::remove_file(&fill)?;
    run(&mut scene.restore("disk/image"))?
        .expect(0)
        .with_context(|| log(&images, "restore.log"))?;
    umount(&disk)?;
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
    scene.expect_good(first.wait(LONG)?, "image")?;
    scene.expect_names(&["image"])?;
    scene.expect_unharmed()
}

fn restore_undisturbed(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let since = scene.workload.counters()?;
    scene.expect_good(run(&mut scene.checkpoint("image"))?, "image")?;
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
        .with_context(|| log(&scene.place("image"), "restore.log"))?
        .says("refused 1 attempt")?;
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}

fn restore_violated(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let since = scene.workload.counters()?;
    scene.expect_good(run(&mut scene.checkpoint("image"))?, "image")?;
    let mut command = scene.restore("image");
    command
        .args(["--level", "detect"])
        .args(scene.hold_at("post-restore")?);
    let mut process = Process::spawn(&mut command)?;
    scene.wait_held(&mut process)?;
    scene
        .cgroup
        .expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    scene.cgroup.thaw()?;
    scene.go_on()?;
    process
        .wait(LONG)?
        .expect(73)?
        .says(&scene.cgroup.text())?
        .says("CRIU has restored the tree although")?;
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}
