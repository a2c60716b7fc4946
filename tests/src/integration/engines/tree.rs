//! Process trees whose manager has no checkpoint: root dumps them with `criu dump`, or with
//! `freezer-guard checkpoint`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    super::{
        cgroups::{Hierarchy, within},
        dump,
        process::{LONG, run},
        service::property,
    },
    engine::{self, Home, Kind, PROGRAM, SLICE, State, Verb, command, quietly},
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

/// Returns `systemctl` of the host's systemd.
pub(super) fn systemctl(words: &[&str]) -> Command {
    command("systemctl", words)
}

/// Returns the command of a systemd for this verb, if it has one. `systemctl`: see [`systemctl`].
pub(super) fn verb(
    systemctl: impl Fn(&[&str]) -> Command,
    unit: &str,
    verb: Verb,
) -> Option<Command> {
    let words: &[&str] = match verb {
        Verb::Pause => &["freeze"],
        Verb::Resume => &["thaw"],
        Verb::Update => &["set-property", "--runtime"],
        Verb::Kill => &["kill", "--signal", "SIGKILL"],
        Verb::Stop => &["stop"],
        Verb::Exec | Verb::Remove | Verb::RestartAlways => return None,
    };
    let mut command = systemctl(words);
    command.arg(unit);
    command.args((verb == Verb::Update).then_some("MemoryMax=300000000"));
    Some(command)
}

/// Ends a unit, which may have gone, or never have come.
pub(super) fn remove(systemctl: impl Fn(&[&str]) -> Command, unit: &str) {
    for words in [
        &["kill", "--signal", "SIGKILL", unit][..],
        &["stop", unit],
        &["reset-failed", unit],
    ] {
        let _ = run(&mut systemctl(words));
    }
}

/// Returns the state of a unit, if its systemd knows it. `property`: one of the unit's.
pub(super) fn state(property: impl Fn(&str) -> Result<String>) -> Result<Option<State>> {
    if property("LoadState")? == "not-found" {
        return Ok(None);
    }
    Ok(Some(match &*property("ActiveState")? {
        "active" => State::of(&property("FreezerState")?),
        "inactive" | "failed" => State::Ended,
        other => State::Other(other.to_owned()),
    }))
}

/// Returns a command that starts a program as a new service.
pub(super) fn service(unit: &str, more: &[&str]) -> Command {
    let mut command = command("systemd-run", &["--quiet", "--collect", "--slice", SLICE]);
    command.args(["--unit", unit]);
    // CRIU cannot dump a connection to the journal. A process can join a delegated cgroup.
    for property in [
        "StandardInput=null",
        "StandardOutput=null",
        "StandardError=null",
        "TimeoutStopSec=1",
        "Delegate=yes",
    ] {
        command.args(["--property", property]);
    }
    command.args(more);
    command
}

/// Restores an image as a new service, so that systemd supervises the tree. `before`: the words before
/// the command of the restore; `options`: CRIU's.
pub(super) fn restore_as_service(
    home: &Home,
    unit: &str,
    name: &str,
    before: &[&str],
    options: &[String],
) -> Result<()> {
    within(LONG, "systemd forgets the unit", || {
        Ok(property(unit, "LoadState")? == "not-found")
    })?;
    let file = home.dir.join("pid");
    let _ = fs::remove_file(&file);
    let file = file.to_str().context("a plain path")?;
    let pid_file = format!("PIDFile={file}");
    let mut command = service(unit, &["-p", "Type=forking", "-p", &pid_file]);
    let image = home.image(name);
    let restore = restore(&image);
    command.args(before).arg(restore.get_program());
    command.args(restore.get_args()).args(["--pidfile", file]);
    command.args(options);
    quietly(&mut command).with_context(|| dump::log(&image, "restore.log"))
}
