//! Wrong use, and what cannot go well: a clear error, and nothing lost.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{
        List,
        cgroups::{Cgroup, Hierarchy, Workload},
        mounts::Mount,
        process::{LONG, guard, run},
    },
    Scene, for_pids,
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("never_replaces_anything", never_replaces);
    list.add("wrong_targets", wrong_targets);
    list.add("wrong_criu", wrong_criu);
    list.add("wrong_images", wrong_images);
    list.add("restore_fails", restore_fails);
    list.add("restore_elsewhere", restore_elsewhere);
}

fn never_replaces(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let image = scene.place("image");
    fs::create_dir(&image)?;
    fs::write(image.join("precious"), "x")?;
    run(&mut scene.checkpoint("image"))?
        .expect(64)?
        .says("already exists")?;
    scene.expect_names(&["image"])?;
    // What cannot get its name is told before the tree has gone.
    let link = scene.place("link");
    symlink(scene.place("nowhere"), &link)?;
    run(&mut scene.checkpoint("link"))?
        .expect(64)?
        .says("link")?;
    fs::remove_file(&link)?;
    let mounted = scene.place("mounted");
    fs::create_dir(&mounted)?;
    let tmpfs = Mount::new("tmpfs", mounted.clone(), None)?;
    run(&mut scene.checkpoint("mounted"))?
        .expect(64)?
        .says("is mounted on")?;
    drop(tmpfs);
    fs::remove_dir(&mounted)?;
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
    let in_v2 = for_pids(hierarchy)?;
    let scene = Scene::beside(hierarchy, in_v2.as_ref())?;
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
    ensure!([1, 255].contains(&part.code), "{part:?}");
    part.says("Error (")?.says("was left running")?;
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
    let file = scene.place("file");
    fs::write(&file, "not to be executed")?;
    let file = file.to_str().context("a plain path")?;
    // This kernel will not do, it says.
    let old = scene.place("script");
    let says = "#!/bin/sh\n[ $1 = --version ] && exec echo Version: 4.2\n\
                echo 'no soft-dirty tracking'; exit 1\n";
    fs::write(&old, says)?;
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755))?;
    let old = old.to_str().context("a plain path")?;
    for (criu, code, words) in [
        ("/nowhere/criu", 127, "was not found"),
        (file, 126, file),
        ("/bin/true", 69, "is not CRIU"),
        (old, 69, "check` says: no soft-dirty tracking"),
    ] {
        run(scene.checkpoint("image").args(["--criu", criu]))?
            .expect(code)?
            .says(words)?;
    }
    run(scene.checkpoint("image").uid(1000).gid(1000))?
        .expect(77)?
        .says("uid 1000 may not use CRIU")?
        .says("CAP_CHECKPOINT_RESTORE")?;
    scene.expect_names(&["file"])?;
    scene.expect_unharmed()
}

fn wrong_images(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    run(&mut scene.restore("nowhere"))?
        .expect(64)?
        .says("there is no directory ")?;
    run(&mut scene.checkpoint("nowhere/image"))?
        .expect(64)?
        .says("there is no directory ")?;
    let empty = scene.place("empty");
    fs::create_dir(&empty)?;
    run(&mut scene.restore("empty"))?
        .expect(64)?
        .says("holds no images")?;
    fs::remove_dir(&empty)?;
    // Another program has made them: what to guard?
    let images = scene.place("image");
    fs::create_dir(&images)?;
    fs::write(images.join("inventory.img"), "")?;
    run(&mut scene.restore("image"))?
        .expect(64)?
        .says("--cgroup")?;
    // It makes no directories that are no cgroups, and leaves no cgroups.
    let dir = scene.place("no/cgroup");
    let missing = scene.cgroup.path.join("missing/cgroup");
    let into = |place: &Path| run(scene.restore("image").arg("--cgroup").arg(place));
    into(&dir)?.expect(64)?.says("is not a cgroup")?;
    let finished = into(&missing)?;
    ensure!([1, 255].contains(&finished.code), "{finished:?}");
    finished.says("restore.log says:")?;
    ensure!(!scene.cgroup.path.join("missing").exists(), "it is left");
    fs::write(images.join("freezer-guard.json"), "{")?;
    run(&mut scene.restore("image"))?
        .expect(64)?
        .says("freezer-guard.json")?;
    scene.expect_names(&["image"])?;
    scene.expect_unharmed()
}

/// Its pids are taken.
fn restore_fails(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    scene.expect_good(
        run(scene.checkpoint("image").arg("--leave-running"))?,
        "image",
    )?;
    run(&mut scene.restore("image"))?
        .expect(1)?
        .says("image/restore.log says:")?
        .says("Error (")?;
    scene.expect_names(&["image"])?;
    scene.expect_unharmed()
}

/// CRIU goes by the image, and not by what is guarded.
fn restore_elsewhere(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let other = Cgroup::new(hierarchy)?;
    let since = scene.workload.counters()?;
    scene.expect_good(run(&mut scene.checkpoint("image"))?, "image")?;
    run(scene.restore("image").arg("--cgroup").arg(&other.path))?
        .expect(75)?
        .says(&format!(
            "CRIU restored pid {} (guest-tool) into",
            scene.workload.pid
        ))?;
    scene.workload.expect_counting_from(&since)?;
    scene.expect_unharmed()
}
