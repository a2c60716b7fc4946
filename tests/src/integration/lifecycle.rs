//! How a guard ends: with its last holder, by a signal, in time, by force.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, eventually},
    process::{Held, LONG, Process, guard, guards, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("run_is_killed", run_is_killed);
    list.add("storm_leaves_nothing", storm);
    list.add("nothing_is_left", nothing_left);
    list.add("sigint_is_passed_on", sigint);
    list.add("second_sigint_kills", second_sigint);
    list.add("timeout", timeout);
    list.add_alone("stays_loaded_until_unload", stays_loaded);
    list.add_alone("unload_takes_another_version", unload_other);
    list.add_alone("end_all_takes_another_version", end_other);
    list.add("end_by_force", force);
    list.add("end_by_force_with_any_name", force_by_id);
    list.add("exit_codes_of_command", codes);
}

/// Where guards keep what they have in the kernel.
const PINS: &str = "/sys/fs/bpf/freezer-guard";

/// The names of the pins.
fn pins() -> Vec<String> {
    let pins = fs::read_dir(PINS).into_iter().flatten().flatten();
    pins.map(|pin| pin.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The programs that are attached: a link is pinned under the program's name.
fn attached() -> Vec<String> {
    let pins = pins();
    let loaded = pins.iter().filter_map(|pin| pin.strip_prefix("program-"));
    loaded
        .filter(|name| pins.iter().any(|pin| pin == name))
        .map(str::to_owned)
        .collect()
}

/// Expects that the last guard has gone, and that nothing is attached any more.
pub(super) fn expect_clean() -> Result<()> {
    let guards = guards()?;
    ensure!(guards.is_empty(), "guards are left: {guards:?}");
    if super::path_of_another().is_some() {
        // It keeps the programs attached.
        return Ok(());
    }
    let attached = attached();
    ensure!(attached.is_empty(), "attached still: {attached:?}");
    Ok(())
}

/// Takes away what earlier tests have left loaded.
pub(super) fn unload() -> Result<()> {
    guard(["unload"])?.expect(0)?;
    let pins = pins();
    ensure!(pins.is_empty(), "pins are left: {pins:?}");
    Ok(())
}

fn usable(cgroup: &Cgroup) -> Result<()> {
    cgroup.freeze()?;
    cgroup.thaw()?;
    Held::new(&[cgroup])?.release()?.expect(0)?;
    expect_clean()
}

fn run_is_killed(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    held.process().signal(Signal::SIGKILL)?;
    eventually("the kill", || held.process().has_ended())?;
    for _ in 0..3 {
        ensure!(guards()?.len() == 1, "the guard has gone with `run`");
        target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    }
    ensure!(
        held.sh(&format!(
            "echo {} > {}",
            hierarchy.thawed(),
            target.freezer().display()
        ))? == 0
    );
    held.process().close_input();
    eventually("the guard goes", || Ok(target.thaw().is_ok()))?;
    expect_clean()?;
    usable(&target)
}

fn storm(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    run(Held::command(&[&target]).args(["--", "guest-tool", "storm"]))?.expect(0)?;
    eventually("the guard goes", || Ok(guards()?.is_empty()))?;
    expect_clean()?;
    usable(&target)
}

fn nothing_left(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    run(Held::command(&[&target]).args(["--", "true"]))?
        .expect(0)?
        .says("refused nothing")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()?;
    usable(&target)
}

fn shell(target: &Cgroup, script: &str) -> Result<Process> {
    let mut process = Process::spawn(Held::command(&[target]).args(["--", "bash", "-c", script]))?;
    process.expect_line("held")?;
    Ok(process)
}

fn sigint(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let script = "trap 'echo got; exit 7' INT; echo held; while :; do sleep 0.1; done";
    let mut process = shell(&target, script)?;
    process.signal(Signal::SIGINT)?;
    process.expect_line("got")?;
    process.wait(LONG)?.expect(7)?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()
}

fn second_sigint(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let script = "trap 'echo got' INT; echo held; while :; do sleep 0.1; done";
    let mut process = shell(&target, script)?;
    process.signal(Signal::SIGINT)?;
    process.expect_line("got")?;
    process.signal(Signal::SIGINT)?;
    process.wait(LONG)?.expect(128 + Signal::SIGKILL as i32)?;
    eventually("the guard goes", || Ok(guards()?.is_empty()))?;
    expect_clean()
}

fn timeout(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut command = Held::command(&[&target]);
    let finished = run(command.args(["--timeout", "1s", "--", "sleep", "1000"]))?;
    let signals = [Signal::SIGTERM, Signal::SIGKILL].map(|signal| 128 + signal as i32);
    ensure!(
        signals.contains(&finished.code),
        "unlike a signal: {finished:?}"
    );
    let finished = finished.says("add --thaw")?;
    ensure!(!finished.stderr.contains("VIOLATED"), "{finished:?}");
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()
}

fn stays_loaded(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    guard(["unload"])?.expect(0)?.says("nothing was loaded")?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    ensure!(!attached().is_empty(), "nothing is attached");
    guard(["unload"])?
        .expect(75)?
        .says("1 guards are in force")?
        .says("freezer-guard end")?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    expect_clean()?;
    let loaded = pins();
    ensure!(!loaded.is_empty(), "nothing stays loaded");
    // What the other hierarchy needs is there on a hybrid host only.
    let other = match hierarchy {
        Hierarchy::V1 => "program-freeze_exit",
        Hierarchy::V2 => "program-apply_state_exit",
    };
    let is_hybrid = Hierarchy::V1.is_here() && Hierarchy::V2.is_here();
    let is_loaded = loaded.iter().any(|pin| pin == other);
    ensure!(is_loaded == is_hybrid, "{other} in {loaded:?}");
    usable(&target)?;
    let mut again = pins();
    again.sort();
    let mut loaded = loaded;
    loaded.sort();
    ensure!(
        again == loaded,
        "the next guard has {again:?}, not {loaded:?}"
    );
    unload()
}

/// A guard that another version of freezer-guard holds: the pin `control-LEVEL-OBJECT` names
/// the version. `run` has been killed, and COMMAND lives.
fn of_another_version(target: &Cgroup) -> Result<Held> {
    unload()?;
    let mut held = Held::new(&[target])?;
    held.process().signal(Signal::SIGKILL)?;
    eventually("the kill", || held.process().has_ended())?;
    let control = pins().into_iter().find(|pin| pin.starts_with("control-"));
    let control = control.context("no pin names the version")?;
    let (level, _) = control.rsplit_once('-').context("LEVEL-OBJECT")?;
    fs::rename(
        format!("{PINS}/{control}"),
        format!("{PINS}/{level}-0123456789abcdef"),
    )?;
    Ok(held)
}

fn unload_other(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = of_another_version(&target)?;
    for arguments in [&["unload"][..], &["status"]] {
        guard(arguments)?.expect(75)?.says("another version")?;
    }
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.process().close_input();
    eventually("the guard goes", || Ok(target.thaw().is_ok()))?;
    guard(["unload"])?.expect(0)?.says("unloaded")?;
    ensure!(pins().is_empty(), "pins are left: {:?}", pins());
    usable(&target)
}

fn end_other(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = of_another_version(&target)?;
    guard(["end", &target.text(), "--force"])?
        .expect(75)?
        .says("end --all")?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    guard(["end", "--all", "--force"])?
        .expect(0)?
        .says("another version")?;
    ensure!(pins().is_empty(), "pins are left: {:?}", pins());
    target.thaw()?;
    held.process().close_input();
    usable(&target)?;
    unload()
}

/// The ways out work for a cgroup with any name, one that is gone, and for all at once.
fn force_by_id(hierarchy: Hierarchy) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let odd = OsStr::from_bytes(b"A\xff\x1b[31m \\x2d");
    let path = parent.path.join(odd);
    fs::create_dir(&path)?;
    let hold = |script: &str| {
        let mut command = Command::new("freezer-guard");
        command.args(["run", "--freeze", "--cgroup"]).arg(&path);
        Process::spawn(command.args(["--", "bash", "-c", script]))
    };
    let mut held = hold("echo held; read -r line")?;
    held.expect_line("held")?;
    let shown = guard(["status"])?.expect(0)?;
    let is_control = |c: char| c.is_control() && c != '\n';
    ensure!(!shown.stdout.contains(is_control), "{:?}", shown.stdout);
    let end = ["end".as_ref(), path.as_os_str(), "--force".as_ref()];
    guard(end)?.expect(0)?;
    held.close_input();
    held.wait(LONG)?.expect(73)?;
    // Its cgroup goes before it does.
    let script = format!("rmdir {}/A*; echo held; read -r line", parent.text());
    let mut held = hold(&script)?;
    held.expect_line("held")?;
    let id = guards()?.pop().context("there is no guard")?["id"].to_string();
    guard(["end", "--guard", &id])?.expect(64)?;
    guard(["end", "--guard", "1", "--force"])?.expect(75)?;
    guard(["end", "--guard", &id, "--force"])?.expect(0)?;
    held.close_input();
    held.wait(LONG)?.expect(73)?;
    let other = Cgroup::new(hierarchy)?;
    let held = [Held::new(&[&parent])?, Held::new(&[&other])?];
    guard(["end", "--all", &other.text(), "--force"])?.expect(64)?;
    guard(["end", "--all", "--force"])?
        .expect(0)?
        .says(&other.text())?;
    ensure!(guards()?.is_empty(), "{:?}", guards()?);
    for held in held {
        held.release()?.expect(73)?;
    }
    guard(["end", "--all", "--force"])?
        .expect(0)?
        .says("no cgroup")?;
    parent.thaw()?;
    other.thaw()?;
    expect_clean()
}

fn force(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    guard(["end", &target.text()])?
        .expect(64)?
        .says("--force")?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    guard(["end", &target.text(), "--force"])?.expect(0)?;
    target.thaw()?;
    held.release()?.expect(73)?;
    expect_clean()
}

fn codes(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    for (script, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        let mut command = Command::new("freezer-guard");
        command.args([
            "run",
            "--freeze",
            "--cgroup",
            &target.text(),
            "--",
            "bash",
            "-c",
            script,
        ]);
        run(&mut command)?.expect(code)?;
        ensure!(
            target.state()? == "THAWED",
            "left {} after {script}",
            target.state()?
        );
    }
    expect_clean()
}
