//! Bad use: a clear message, the right exit code, nothing left behind.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        process::CommandExt as _,
    },
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    lifecycle::{self, expect_clean},
    process::{Held, Process, guard, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("usage", usage);
    list.add("no_such_path", |h| {
        refused(&h.root().join("none").display().to_string(), 64)
    });
    list.add("not_a_cgroup", |_| refused("/tmp", 64));
    list.add("root_cgroup", |h| {
        refused(&h.root().display().to_string(), 64)
    });
    list.add("own_cgroup", |h| own(h, false));
    list.add("ancestor_of_own_cgroup", |h| own(h, true));
    list.add("not_frozen", not_frozen);
    list.add("frozen_ancestor", frozen_ancestor);
    list.add("frozen_descendant", frozen_descendant);
    list.add("already_guarded", already_guarded);
    list.add("does_not_freeze", does_not_freeze);
    list.add("command_not_found", command_not_found);
    list.add("no_capability", no_capability);
    list.add("other_user", other_user);
    list.add("bpffs_not_mounted", no_bpffs);
    list.add_alone("bpffs_for_everybody", squatted);
}

fn refused(path: &str, code: i32) -> Result<()> {
    guard(["run", "--cgroup", path, "--freeze", "--", "echo", "ran"])?.expect_not_run(code)?;
    guard(["run", "--cgroup", path, "--", "echo", "ran"])?.expect_not_run(code)?;
    expect_clean()
}

impl super::process::Finished {
    fn expect_not_run(self, code: i32) -> Result<Self> {
        let finished = self.expect(code)?.says("freezer-guard: ")?;
        ensure!(!finished.stdout.contains("ran"), "COMMAND was run");
        Ok(finished)
    }
}

fn usage(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let path = &target.text();
    for arguments in [
        &["run", "--cgroup", path][..],
        &["run", "--cgroup", path, "--"],
        &["run", "--cgroup", path, "--no-such-flag", "--", "true"],
        &["run", "--freeze", "--", "true"],
        &[
            "run",
            "--cgroup",
            path,
            "--freeze-timeout",
            "soon",
            "--freeze",
            "--",
            "true",
        ],
        &["no-such-command"],
        &["end"],
    ] {
        guard(arguments)?
            .expect(64)
            .with_context(|| format!("{arguments:?}"))?;
    }
    guard(["--help"])?.expect(0)?;
    guard(["run", "--help"])?.expect(0)?;
    ensure!(target.state()? == "THAWED");
    expect_clean()
}

fn own(hierarchy: Hierarchy, ancestor: bool) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let inner = parent.child("inner")?;
    let mine = if ancestor { &inner } else { &parent };
    let script = "echo $$ > \"$1/cgroup.procs\" && exec freezer-guard run --cgroup \"$2\" --freeze -- echo ran";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash", &mine.text(), &parent.text()]);
    run(&mut command)?.expect_not_run(64)?;
    ensure!(parent.state()? == "THAWED", "left {}", parent.state()?);
    expect_clean()
}

fn not_frozen(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let finished = guard(["run", "--cgroup", &target.text(), "--", "echo", "ran"])?;
    finished.expect_not_run(75)?.says("--freeze")?;
    workload.expect_counting()?;
    expect_clean()
}

fn both_ways(target: &Cgroup, state: &str) -> Result<()> {
    for flags in [&["--freeze", "--freeze-timeout", "2s"][..], &[]] {
        let arguments = [
            &["run", "--cgroup", &target.text()],
            flags,
            &["--", "echo", "ran"],
        ];
        guard(arguments.concat())?.expect_not_run(75)?;
        ensure!(target.state()? == state, "left {}", target.state()?);
    }
    expect_clean()
}

fn frozen_ancestor(hierarchy: Hierarchy) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let target = parent.child("target")?;
    let workload = Workload::start(&[&target], 0)?;
    parent.freeze()?;
    both_ways(&target, &target.state()?)?;
    parent.thaw()?;
    workload.expect_counting()
}

fn frozen_descendant(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let child = target.child("child")?;
    let workload = Workload::start(&[&target], 0)?;
    child.freeze()?;
    both_ways(&target, "THAWED")?;
    ensure!(child.state()? == "FROZEN", "the child was thawed");
    workload.expect_counting()
}

fn already_guarded(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    for flags in [&["--freeze"][..], &[]] {
        let arguments = [
            &["run", "--cgroup", &target.text()],
            flags,
            &["--", "echo", "ran"],
        ];
        guard(arguments.concat())?.expect_not_run(75)?;
    }
    ensure!(target.state()? == "FROZEN", "a loser has thawed it");
    held.release()?.expect(0)?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()
}

fn does_not_freeze(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let mut stalled =
        Process::spawn(Command::new("guest-tool").args(["stall", "--cgroup", &target.text()]))?;
    stalled.expect_line("ready")?;
    let pid = stalled.pid().to_string();
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    let thread = threads
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|thread| *thread != pid)
        .context("the thread that stalls")?;
    let limit = ["--freeze", "--freeze-timeout", "1s"];
    let arguments = [
        &["run", "--cgroup", &target.text()],
        &limit[..],
        &["--", "echo", "ran"],
    ];
    guard(arguments.concat())?
        .expect_not_run(75)?
        .says(&format!("pid {thread} (guest-tool"))?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    workload.expect_counting()?;
    expect_clean()
}

fn command_not_found(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    run(Held::command(&[&target]).args(["--", "no-such-command"]))?
        .expect(127)?
        .says("no-such-command")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()
}

fn no_capability(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut command = Command::new("guest-tool");
    command.args([
        "powerless",
        "--",
        "freezer-guard",
        "run",
        "--freeze",
        "--cgroup",
    ]);
    run(command.arg(&target.path).args(["--", "echo", "ran"]))?.expect_not_run(77)?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()
}

fn other_user(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let other = Cgroup::new(hierarchy)?;
    for path in [&target.path, &other.path] {
        let mut command = Command::new("freezer-guard");
        command
            .args(["run", "--freeze", "--cgroup"])
            .arg(path)
            .args(["--", "echo", "ran"]);
        run(command.uid(65534).gid(65534))?.expect_not_run(77)?;
    }
    held.release()?.expect(0)?;
    expect_clean()
}

/// Mounted by us, or an error that says how.
fn no_bpffs(hierarchy: Hierarchy) -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    let target = Cgroup::new(hierarchy)?;
    let mut command = Command::new("guest-tool");
    command.args([
        "unmounted",
        BPFFS,
        "--",
        "freezer-guard",
        "run",
        "--freeze",
        "--cgroup",
    ]);
    let finished = run(command.arg(&target.path).args(["--", "true"]))?;
    if finished.code != 0 {
        finished.expect(69)?.says(BPFFS)?;
    }
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    ensure!(fs::metadata(BPFFS)?.is_dir());
    expect_clean()
}

/// Where users may write to bpffs, one of them can make our directory, or a link in its place.
fn squatted(hierarchy: Hierarchy) -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    const PINS: &str = "/sys/fs/bpf/freezer-guard";
    let target = Cgroup::new(hierarchy)?;
    let refused = |words: &str| {
        let mut command = Command::new("freezer-guard");
        command.args(["run", "--freeze", "--cgroup", &target.text()]);
        run(command.args(["--", "true"]))?.expect(69)?.says(words)
    };
    let mode = |path: &str, mode| fs::set_permissions(path, Permissions::from_mode(mode));
    lifecycle::unload()?;
    fs::remove_dir(PINS)?;
    fs::create_dir(PINS)?;
    chown(PINS, Some(1000), None)?;
    refused("it belongs to uid 1000")?;
    chown(PINS, Some(0), None)?;
    mode(PINS, 0o777)?;
    refused("others may write to it")?;
    fs::remove_dir(PINS)?;
    let elsewhere = format!("{BPFFS}/elsewhere");
    fs::create_dir(&elsewhere)?;
    symlink(&elsewhere, PINS)?;
    refused(PINS)?;
    fs::remove_file(PINS)?;
    fs::remove_dir(&elsewhere)?;
    let before = fs::metadata(BPFFS)?.permissions();
    mode(BPFFS, 0o777)?;
    refused("and so replace it")?;
    mode(BPFFS, 0o1777)?;
    let held = Held::new(&[&target])?;
    fs::set_permissions(BPFFS, before)?;
    held.release()?.expect(0)?;
    expect_clean()
}
