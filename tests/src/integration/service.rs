//! The host's service under systemd: how it starts, what it survives, and that
//! systemd itself is refused like anybody else.

mod records;

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, unique},
    process::{Finished, Held, guard, guards, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("starts_and_is_ready", ready);
    list.add("attaches_little_while_nothing_is_guarded", idle);
    list.add("is_confined", confined);
    list.add("survives_a_watchdog_miss", watchdog);
    list.add("reloads_its_configuration", reload);
    list.add("is_the_only_one", only_one);
    list.add("waits_for_another_version", other_version);
    list.add("refuses_systemd", refuses_systemd);
    list.add("thaws_for_a_holder_that_died", thaws);
    list.add("thaws_no_other_cgroup_of_that_name", thaws_no_other);
    list.add("metrics", records::metrics);
    list.add("report_of_the_last", records::report);
}

/// How long systemd and the service may take for what they do.
const LONG: Duration = Duration::from_secs(90);
const PINS: &str = "/sys/fs/bpf/freezer-guard";
pub(super) const CONFIG: &str = "/etc/freezer-guard/config.toml";

pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(
            start.elapsed() < LONG,
            "waited in vain: {what}; the journal:\n{}",
            journal()?
        );
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

pub(super) fn systemctl(arguments: &[&str]) -> Result<Finished> {
    run(Command::new("systemctl").args(arguments))
}

pub(super) fn property(unit: &str, name: &str) -> Result<String> {
    let shown = systemctl(&["show", "--value", "-p", name, unit])?.expect(0)?;
    Ok(shown.stdout.trim().to_owned())
}

/// The service's process; none while it is being started.
fn running() -> Result<Option<Pid>> {
    let pid: i32 = property("freezer-guard", "MainPID")?.parse()?;
    let active = property("freezer-guard", "ActiveState")? == "active";
    Ok((active && pid != 0).then(|| Pid::from_raw(pid)))
}

pub(super) fn main_pid() -> Result<Pid> {
    running()?.context("the service does not run")
}

/// Waits until another process than this one is the service.
pub(super) fn expect_anew(old: Pid) -> Result<()> {
    eventually("the service is there anew", || {
        Ok(running()?.is_some_and(|pid| pid != old))
    })
}

/// What the service has logged in this boot.
pub(super) fn journal() -> Result<String> {
    let mut command = Command::new("journalctl");
    command.args(["-b", "-t", "freezer-guard", "-o", "cat", "--no-pager"]);
    Ok(run(&mut command)?.stdout)
}

/// The fields of what it has logged.
pub(super) fn journal_fields() -> Result<Vec<Value>> {
    let mut command = Command::new("journalctl");
    command.args(["-b", "-t", "freezer-guard", "-o", "json", "--no-pager"]);
    let lines = run(&mut command)?.stdout;
    lines
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

/// Whether a program is attached that refuses writes.
pub(super) fn refuses_writes() -> bool {
    ["file_permission", "file_permission_v2"]
        .into_iter()
        .any(is_attached)
}

pub(super) fn is_attached(program: &str) -> bool {
    Path::new(PINS).join(program).exists()
}

/// It runs and nothing is guarded.
pub(super) fn expect_idle() -> Result<()> {
    eventually("no guard", || Ok(guards()?.is_empty()))?;
    eventually("nothing refuses", || Ok(!refuses_writes()))
}

/// A unit with a process of its own, in a slice of its own.
pub(super) struct Unit {
    name: String,
    pub(super) slice: String,
}

impl Unit {
    pub(super) fn start() -> Result<Self> {
        let name = unique().replace('-', "");
        let unit = Self {
            slice: format!("{name}.slice"),
            name: format!("{name}.service"),
        };
        run(Command::new("systemd-run")
            .args(["--quiet", "-p", "TimeoutStopSec=2", "-p", "Restart=no"])
            .args(["--slice", &unit.slice, "--unit", &unit.name])
            .args(["sleep", "100000"]))?
        .expect(0)?;
        eventually("the unit runs", || Ok(unit.pid()? != 0))?;
        Ok(unit)
    }

    pub(super) fn pid(&self) -> Result<i32> {
        Ok(property(&self.name, "MainPID")?.parse()?)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = systemctl(&["kill", "-s", "KILL", &self.name]);
        let _ = systemctl(&["stop", &self.name, &self.slice]);
        let _ = systemctl(&["reset-failed", &self.name]);
    }
}

fn ready(_: Hierarchy) -> Result<()> {
    ensure!(property("freezer-guard", "ActiveState")? == "active");
    let text = property("freezer-guard", "StatusText")?;
    ensure!(text.contains("guarding every checkpoint"), "{text}");
    let before = property("freezer-guard", "NRestarts")?;
    let old = main_pid()?;
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    ensure!(main_pid()? != old, "it is the same");
    ensure!(property("freezer-guard", "NRestarts")? == before);
    expect_idle()
}

fn idle(hierarchy: Hierarchy) -> Result<()> {
    expect_idle()?;
    let on_every_path = [
        match hierarchy {
            Hierarchy::V1 => "file_permission",
            Hierarchy::V2 => "file_permission_v2",
        },
        "inode_permission",
        "ptrace_access_check",
        "task_kill",
    ];
    for program in on_every_path {
        ensure!(!is_attached(program), "{program} is attached");
        ensure!(
            is_attached(&format!("program-{program}")),
            "{program} is not loaded"
        );
    }
    ensure!(is_attached("bprm_committed_creds"), "nothing watches");
    guard(["unload"])?.expect(75)?.says("stop it first")?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    ensure!(refuses_writes(), "nothing refuses");
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    expect_idle()?;
    ensure!(
        is_attached("bprm_committed_creds"),
        "nothing watches any more"
    );
    // Of one that does not begin the service hears nothing.
    let mut command = Held::command(&[&target]);
    run(command.args(["--level", "detect", "--", "true"]))?.expect(75)?;
    ensure!(!refuses_writes(), "what refuses is left attached");
    eventually("the journal tells of it", || {
        Ok(journal()?.contains(&format!("guarding {} (enforce)", target.text())))
    })
}

pub(super) fn confined(_: Hierarchy) -> Result<()> {
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--no-pager", "--threshold=20", "freezer-guard"]);
    run(&mut command)?.expect(0)?;
    let capabilities = property("freezer-guard", "CapabilityBoundingSet")?;
    ensure!(
        capabilities.contains("cap_bpf") && !capabilities.contains("cap_sys_admin"),
        "{capabilities}"
    );
    Ok(())
}

fn watchdog(hierarchy: Hierarchy) -> Result<()> {
    let dir = "/run/systemd/system/freezer-guard.service.d";
    fs::create_dir_all(dir)?;
    fs::write(format!("{dir}/test.conf"), "[Service]\nWatchdogSec=3\n")?;
    systemctl(&["daemon-reload"])?.expect(0)?;
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let old = main_pid()?;
    kill(old, Signal::SIGSTOP)?;
    expect_anew(old)?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    ensure!(guards()?.len() == 1, "the guard is gone");
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    fs::remove_dir_all(dir)?;
    systemctl(&["daemon-reload"])?.expect(0)?;
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    expect_idle()
}

fn reload(_: Hierarchy) -> Result<()> {
    let before = fs::read_to_string(CONFIG)?;
    guard(["config", "check"])?.expect(0)?;
    fs::write(CONFIG, "[automatic]\nenabled = false\n")?;
    systemctl(&["reload", "freezer-guard"])?.expect(0)?;
    eventually("it does not watch", || {
        Ok(!is_attached("bprm_committed_creds"))
    })?;
    fs::write(CONFIG, "[automatic]\n\nenable = true\n")?;
    guard(["config", "check"])?
        .expect(64)?
        .says("config.toml:3: unknown field `enable`")?;
    systemctl(&["reload", "freezer-guard"])?;
    eventually("it says what is wrong", || {
        Ok(journal()?.contains("config.toml:3: unknown field `enable`"))
    })?;
    ensure!(property("freezer-guard", "ActiveState")? == "active");
    fs::write(CONFIG, before)?;
    systemctl(&["reload", "freezer-guard"])?.expect(0)?;
    eventually("it watches again", || {
        Ok(is_attached("bprm_committed_creds"))
    })
}

fn only_one(_: Hierarchy) -> Result<()> {
    guard(["daemon"])?
        .expect(75)?
        .says("another daemon is already running")?;
    ensure!(property("freezer-guard", "ActiveState")? == "active");
    Ok(())
}

/// An upgrade to a version with other programs, while the old ones hold a guard.
fn other_version(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    systemctl(&["stop", "freezer-guard.socket", "freezer-guard"])?.expect(0)?;
    ensure!(refuses_writes(), "the guard has gone with the service");
    let pin = fs::read_dir(PINS)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("/control-"))
        .context("there is no pin of `control`")?;
    let other = Path::new(PINS).join("control-enforce-0123456789abcdef");
    fs::rename(&pin, &other)?;
    systemctl(&["start", "freezer-guard.socket", "freezer-guard"])?.expect(0)?;
    let text = property("freezer-guard", "StatusText")?;
    ensure!(text.contains("another version"), "{text}");
    guard(["status"])?.expect(75)?.says("another version")?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    fs::rename(&other, &pin)?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    eventually("it is ready", || {
        Ok(property("freezer-guard", "StatusText")?.contains("guarding every checkpoint"))
    })?;
    expect_idle()
}

/// `systemctl` and a guarded unit. systemd uses the v2 freezer only.
fn refuses_systemd(_: Hierarchy) -> Result<()> {
    let unit = Unit::start()?;
    let pid = unit.pid()?;
    let mut held = hold_unit(&unit)?;
    let mut refused = 0;
    let mut attempt = |verb: &str, name: &str| -> Result<()> {
        // What it says of a refusal differs from release to release; that it was
        // refused and told does not.
        let _ = systemctl(&[verb, name])?;
        ensure!(unit_lives(pid), "`systemctl {verb} {name}` has ended it");
        let guard = &guards()?[0];
        let now: u64 = ["freeze", "kill"]
            .iter()
            .filter_map(|kind| guard["denials"][kind].as_u64())
            .sum();
        ensure!(
            now > refused,
            "`systemctl {verb} {name}` met no refusal: {guard}"
        );
        ensure!(
            guard["violations"]["kill"] == 0 && guard["violations"]["freeze"] == 0,
            "{guard}"
        );
        refused = now;
        Ok(())
    };
    let unified = Hierarchy::V2.root() == Path::new("/sys/fs/cgroup");
    if unified {
        // It is frozen, and systemd writes only what changes something.
        attempt("thaw", &unit.name)?;
        let freezer = format!("/sys/fs/cgroup/{}/{}/cgroup.freeze", unit.slice, unit.name);
        ensure!(held.sh(&format!("echo 0 > {freezer}"))? == 0);
        attempt("freeze", &unit.name)?;
        attempt("freeze", &unit.slice)?;
        expect_refusals(&held.release()?.expect(0)?)?;
        // And now it works. systemd 252 takes the refused freeze for one under way
        // until the cgroup tells it of another one.
        hold_unit(&unit)?.release()?.expect(0)?;
        eventually("systemd can freeze it", || {
            Ok(systemctl(&["freeze", &unit.name])?.code == 0)
        })?;
        systemctl(&["thaw", &unit.name])?.expect(0)?;
        held = hold_unit(&unit)?;
    }
    let _ = systemctl(&["stop", &unit.name])?;
    ensure!(unit_lives(pid), "`systemctl stop` has ended it");
    expect_refusals(&held.release()?.expect(0)?)?;
    eventually("the journal tells of systemd", || {
        Ok(journal()?.contains("refused systemd (pid 1, uid 0)"))
    })?;
    // systemd has given it up by now; another one is restarted, and then stopped.
    drop(unit);
    let unit = Unit::start()?;
    let pid = unit.pid()?;
    let held = hold_unit(&unit)?;
    let _ = systemctl(&["restart", &unit.name])?;
    ensure!(unit_lives(pid), "`systemctl restart` has ended it");
    expect_refusals(&held.release()?.expect(0)?)?;
    drop(unit);
    let unit = Unit::start()?;
    let pid = unit.pid()?;
    hold_unit(&unit)?.release()?.expect(0)?;
    systemctl(&["stop", &unit.name])?.expect(0)?;
    ensure!(!unit_lives(pid), "`systemctl stop` does not end it");
    Ok(())
}

fn hold_unit(unit: &Unit) -> Result<Held> {
    let mut command = Command::new("freezer-guard");
    command.args(["run", "--freeze", "--cgroup", &unit.name]);
    let mut held = Held::start(&mut command)?;
    held.wait_held()?;
    Ok(held)
}

fn expect_refusals(finished: &Finished) -> Result<()> {
    let is_told =
        finished.stderr.contains(" attempt") && !finished.stderr.contains("refused nothing");
    ensure!(is_told, "nothing was refused: {}", finished.stderr);
    Ok(())
}

fn unit_lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Where `run` is killed nobody thaws what it froze: now the service does.
fn thaws(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    held.process().signal(Signal::SIGKILL)?;
    held.process().close_input();
    drop(held);
    eventually("it is thawed", || Ok(target.state()? == "THAWED"))?;
    expect_idle()?;
    // What was FROZEN before stays so.
    target.freeze()?;
    let mut command = Command::new("freezer-guard");
    let mut held = Held::start(command.args(["run", "--cgroup", &target.text()]))?;
    held.wait_held()?;
    held.process().signal(Signal::SIGKILL)?;
    held.process().close_input();
    drop(held);
    expect_idle()?;
    ensure!(target.state()? == "FROZEN", "it was thawed");
    Ok(())
}

/// The service is away when the guard's cgroup goes, and another one gets its name.
fn thaws_no_other(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    systemctl(&["stop", "freezer-guard.socket", "freezer-guard"])?.expect(0)?;
    held.process().signal(Signal::SIGKILL)?;
    held.process().close_input();
    drop(held);
    fs::remove_dir(&target.path)?;
    fs::create_dir(&target.path)?;
    target.freeze()?;
    systemctl(&["start", "freezer-guard.socket", "freezer-guard"])?.expect(0)?;
    expect_idle()?;
    ensure!(target.state()? == "FROZEN", "it is {}", target.state()?);
    target.thaw()
}
