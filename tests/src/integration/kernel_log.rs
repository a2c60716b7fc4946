//! `freezer-guard daemon --kernel-log LEVEL`: the kernel side says why.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, eventually},
    lifecycle::expect_clean,
    process::{Held, LONG, Process, guard, run},
    scratch,
};

/// Names the level that the programs were loaded with.
const MARK: &str = "/sys/fs/bpf/freezer-guard/kernel-log";

pub(super) fn list(list: &mut List<'_>) {
    list.add("one_denied_write", denied_write);
    list.add("off_by_default", off);
    list.add("wrong_level", wrong_level);
}

/// A daemon that nobody manages, with its log on standard error.
fn daemon(arguments: &[&str], level: &str) -> Result<Process> {
    let mut daemon = Process::spawn(Command::new("freezer-guard").arg("daemon").args(arguments))?;
    eventually("the daemon has loaded everything", || {
        ensure!(!daemon.has_ended()?, "the daemon has ended");
        Ok(
            fs::read_link(MARK).is_ok_and(|mark| mark == Path::new(level))
                && fs::metadata("/sys/fs/bpf/freezer-guard/GUARDS").is_ok(),
        )
    })?;
    Ok(daemon)
}

/// Ends the daemon, and returns its log.
fn log_of(daemon: Process) -> Result<String> {
    // It reads what there is to read twice a second.
    thread::sleep(Duration::from_millis(1500));
    daemon.signal(Signal::SIGTERM)?;
    let log = daemon.wait(LONG)?.expect(0)?.stderr;
    guard(["unload"])?.expect(0)?;
    expect_clean()?;
    Ok(log)
}

fn denied_write(hierarchy: Hierarchy) -> Result<()> {
    let daemon = daemon(&["--kernel-log", "trace"], "trace")?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    // The file of another user than root is no checkpointer's, whatever its name.
    let dir = scratch("kernel-log");
    fs::create_dir_all(&dir)?;
    let criu = dir.join("criu");
    fs::copy("/proc/self/exe", &criu).context("copy this program")?;
    let execute = || run(Command::new(&criu).arg("--help"))?.expect(0);
    chown(&criu, Some(1000), None)?;
    execute()?;
    chown(&criu, Some(0), None)?;
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o777))?;
    execute()?;
    let log = log_of(daemon)?;
    for expected in [
        format!("the act write about {}", target.text()),
        "refuses pid".to_owned(),
        "uid 1000 owns the file".to_owned(),
        "others than root may write the file (mode 777)".to_owned(),
    ] {
        ensure!(
            log.contains(&expected),
            "no {expected:?} in the log:\n{log}"
        );
    }
    ensure!(!log.contains("another version"), "{log}");
    Ok(())
}

fn off(hierarchy: Hierarchy) -> Result<()> {
    let daemon = daemon(&[], "off")?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    let log = log_of(daemon)?;
    ensure!(!log.contains("refuses pid"), "{log}");
    Ok(())
}

fn wrong_level(_: Hierarchy) -> Result<()> {
    guard(["daemon", "--kernel-log", "loud"])?
        .expect(64)?
        .says("loud")?;
    Ok(())
}
