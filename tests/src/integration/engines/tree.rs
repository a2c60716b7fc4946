//! Process trees whose manager has no checkpoint: root dumps them with `criu dump`, or with
//! `freezer-guard checkpoint`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    super::cgroups::Hierarchy,
    engine::{self, Home, Kind, PROGRAM, command},
};

/// [`Way::Run`](super::Way::Run) of these trees, for the tables.
pub(super) const GUARDED: &str = "`checkpoint`";

/// Returns `criu dump` of the tree of this process.
pub(super) fn by_criu(
    home: &Home,
    name: &str,
    kind: Kind<'_>,
    pid: i32,
    options: &[String],
) -> Result<Command> {
    let image = home.image(name);
    fs::create_dir_all(&image)?;
    let mut criu = command("criu", &[if kind.pre_dump { "pre-dump" } else { "dump" }]);
    criu.args(["-o", "dump.log", "--tree", &pid.to_string()]);
    criu.arg("--images-dir").arg(image);
    criu.arg("--freeze-cgroup").arg(cgroup_of(pid)?);
    if let Some(parent) = kind.parent {
        criu.arg("--prev-images-dir").arg(format!("../{parent}"));
    }
    criu.args((kind.pre_dump || kind.parent.is_some()).then_some("--track-mem"));
    criu.args(kind.leave_running.then_some("--leave-running"));
    criu.args(options);
    Ok(criu)
}

/// Returns `freezer-guard checkpoint` of the tree that `target` names.
pub(super) fn by_us(
    home: &Home,
    name: &str,
    kind: Kind<'_>,
    target: [&str; 2],
    options: &[String],
) -> Result<Command> {
    fs::create_dir_all(home.image(""))?;
    let mut ours = command("freezer-guard", &["checkpoint"]);
    ours.args(target).arg("--images-dir").arg(home.image(name));
    if let Some(parent) = kind.parent {
        ours.arg("--parent").arg(home.image(parent));
    }
    ours.args(kind.pre_dump.then_some("--pre-dump"));
    ours.args(kind.leave_running.then_some("--leave-running"));
    ours.arg("--").args(options);
    Ok(ours)
}

/// Returns whether `freezer-guard checkpoint` has made this image.
pub(super) fn is_ours(image: &Path) -> bool {
    image.join("freezer-guard.json").exists()
}

/// Returns the command that restores a tree from an image, by the program that has made it. Options for
/// CRIU can follow.
pub(super) fn restore(image: &Path) -> Command {
    let mut restore = match is_ours(image) {
        true => command("freezer-guard", &["restore", "--images-dir"]),
        false => command("criu", &["restore", "-d", "-o", "restore.log", "-D"]),
    };
    restore.arg(image);
    restore.args(is_ours(image).then_some("--"));
    restore
}

/// Returns a script that has a systemd (`--system` or `--user`) move its shell into a unit.
pub(super) fn join(systemd: &str, unit: &str) -> String {
    format!(
        "busctl {systemd} call org.freedesktop.systemd1 /org/freedesktop/systemd1 \
         org.freedesktop.systemd1.Manager AttachProcessesToUnit ssau {unit} '' 1 $$"
    )
}

/// Returns the v2 cgroup of a process.
pub(super) fn cgroup_of(pid: i32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mut lines = text.lines();
    let path = lines.find_map(|line| line.strip_prefix("0::/"));
    Ok(Hierarchy::V2.root().join(path.context("a v2 cgroup")?))
}

/// Returns [`PROGRAM`], for a tree in the root of the host.
pub(super) fn program(home: &Home) -> Result<Vec<String>> {
    let root = home.rootfs();
    let root = root.to_str().context("a plain path")?;
    let word = |word: &&str| match word.strip_prefix('/') {
        Some(_) => format!("{root}{word}"),
        None => (*word).to_owned(),
    };
    Ok(PROGRAM.iter().map(word).collect())
}

/// Returns the versions of systemd and CRIU.
pub(super) fn versions() -> Result<String> {
    let systemd = engine::version("systemctl")?.replace("systemctl", "systemd");
    Ok(format!("{systemd}, {}", engine::version("criu")?))
}
