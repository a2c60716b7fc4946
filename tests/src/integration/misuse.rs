//! Bad use: a clear message, the right exit code, nothing left behind.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        process::CommandExt as _,
    },
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, eventually},
    lifecycle::{self, expect_clean},
    process::{Held, LONG, Process, guard, run},
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
    list.add("bpffs_of_a_namespace", other_bpffs);
    list.add("absurd_time", absurd_time);
    list.add("few_descriptors", few_descriptors);
    list.add("lock_of_a_stopped_process", locked);
    list.add("ctrl_c_while_it_waits_for_a_lock", interrupted);
    list.add("ignored_signal", ignored_signal);
    list.add("ctrl_z", ctrl_z);
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
    finished.expect(69)?.says(BPFFS)?;
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

/// Guards with pins in another bpffs would not know of these.
fn other_bpffs(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c"]).arg(
        "mount -t bpf none /sys/fs/bpf && exec freezer-guard run --freeze --cgroup \"$1\" -- echo ran",
    );
    run(command.arg("bash").arg(&target.path))?
        .expect_not_run(69)?
        .says("nsenter --mount --target 1")?;
    expect_clean()
}

/// The kernel's clocks cannot add it to the time of day.
fn absurd_time(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    for option in ["--timeout", "--freeze-timeout"] {
        let mut command = Held::command(&[&target]);
        command.args([option, "500000000000years", "--", "echo", "ran"]);
        run(&mut command)?
            .expect(64)?
            .says("longer than a year")
            .context(option)?;
    }
    expect_clean()
}

fn few_descriptors(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    for limit in [5, 8, 16, 40, 60] {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!(
            "ulimit -n {limit}; exec freezer-guard run --freeze --cgroup {} -- true",
            target.text()
        ));
        let finished = run(&mut command)?;
        ensure!(
            [69, 70].contains(&finished.code) && !finished.stderr.contains("panicked"),
            "{limit}: {finished:?}"
        );
        finished
            .says("freezer-guard: ")
            .with_context(|| format!("{limit} descriptors"))?;
    }
    target.thaw()?;
    expect_clean()
}

/// Another process that keeps the lock of the pins.
pub(super) fn lock() -> Result<Process> {
    let mut owner = Process::spawn(Command::new("guest-tool").args(["lock", PINS]))?;
    owner.expect_line("ready")?;
    Ok(owner)
}

const PINS: &str = "/sys/fs/bpf/freezer-guard";

/// It would keep it for ever.
fn locked(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let owner = lock()?;
    owner.signal(Signal::SIGSTOP)?;
    let pid = owner.pid();
    for arguments in [
        &["status"][..],
        &["run", "--cgroup", &target.text(), "--freeze", "--", "true"],
    ] {
        guard(arguments)?
            .expect(75)?
            .says(&format!("pid {pid} (guest-tool) has locked {PINS}"))?
            .says(&format!("kill -CONT {pid}"))?;
    }
    owner.signal(Signal::SIGCONT)?;
    drop(owner);
    expect_clean()
}

fn interrupted(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut owner = lock()?;
    let mut command = Held::command(&[&target]);
    let waiting = Process::spawn(command.args(["--", "echo", "ran"]))?;
    let other = Process::spawn(Command::new("freezer-guard").arg("status"))?;
    sleep(Duration::from_secs(1));
    waiting.signal(Signal::SIGINT)?;
    waiting
        .wait(Duration::from_secs(5))?
        .expect_not_run(128 + libc::SIGINT)?;
    owner.tell("go")?;
    other.wait(LONG)?.expect(0)?;
    expect_clean()
}

/// As `nohup` has it.
fn ignored_signal(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "bash"]);
    let inner = Held::command(&[&target]);
    command.arg(inner.get_program()).args(inner.get_args());
    let mut held = Held::start(&mut command)?;
    held.wait_held()?;
    held.process().signal(Signal::SIGHUP)?;
    ensure!(
        held.sh("grep '^SigIgn.*[13579bdf]$' /proc/$$/status")? == 0,
        "COMMAND has it back"
    );
    held.release()?.expect(0)?;
    expect_clean()
}

/// Stopped, it would leave the tasks frozen.
fn ctrl_z(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    ensure!(held.sh("sleep 1000 & kill -STOP $!")? == 0);
    held.process().signal(Signal::SIGTSTP)?;
    eventually("COMMAND goes on", || {
        Ok(held.sh("grep -q '^State:.S' /proc/$!/status")? == 0)
    })?;
    held.sh("kill $!")?;
    held.release()?.expect(0)?.says("Ctrl-Z")?;
    expect_clean()
}
