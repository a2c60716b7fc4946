//! Who may write: COMMAND and all that descends from it, nobody else.

use std::{process::Command, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, eventually},
    lifecycle::expect_clean,
    process::{Held, LONG, Process, guard, guards},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("command_itself", |h| {
        allowed(h, |write| format!("exec 3>&1; {write}"))
    });
    list.add("child", |h| allowed(h, |write| format!("(:; {write})")));
    list.add("grandchild", |h| {
        allowed(h, |write| format!("(:; (:; {write}; exit $?); exit $?)"))
    });
    list.add("thread", thread);
    list.add("daemonised_grandchild", daemon);
    list.add("older_process_is_none", older);
    list.add("what_it_restores_is_none", restored);
    list.add_alone("where_an_earlier_holder_was", reused);
}

/// The holder thaws the target and freezes it again.
fn allowed(hierarchy: Hierarchy, wrap: impl Fn(&str) -> String) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    for (value, state) in [
        (hierarchy.thawed(), "THAWED"),
        (hierarchy.frozen(), "FROZEN"),
    ] {
        let write = format!("echo {value} > {}", target.freezer().display());
        ensure!(
            held.sh(&wrap(&write))? == 0,
            "the holder may not write {value}"
        );
        ensure!(
            target.state()? == state,
            "{} and not {state}",
            target.state()?
        );
    }
    held.release()?.expect(0)?.says("refused nothing")?;
    Ok(())
}

fn thread(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    let write = format!(
        "guest-tool threads {} {}",
        target.freezer().display(),
        hierarchy.thawed()
    );
    ensure!(held.sh(&write)? == 0, "the holder's thread may not write");
    ensure!(target.state()? == "THAWED");
    held.release()?.expect(0)?;
    Ok(())
}

/// Has lost COMMAND as a parent, and outlives it.
fn daemon(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mark = super::scratch("daemon");
    let mut held = Held::new(&[&target])?;
    let line = format!(
        "guest-tool daemon -- bash -c 'sleep 0.5; echo {} > {} && touch {mark}; sleep 1' >/dev/null 2>&1",
        hierarchy.thawed(),
        target.freezer().display(),
        mark = mark.display(),
    );
    ensure!(held.sh(&line)? == 0, "could not start the daemon");
    eventually("the daemon writes", || Ok(mark.exists()))?;
    held.release()?.expect(0)?;
    eventually(
        "the guard goes with the daemon",
        || Ok(guards()?.is_empty()),
    )?;
    target.freeze()?;
    target.thaw()
}

/// A child that is put into the target is a process that is being restored. It may go on to a cgroup
/// below; but when all others have ended, so has the guard.
fn restored(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let below = target.child("below")?;
    let mut held = Held::new(&[&target])?;
    held.thaw(&target)?;
    let restore = format!(
        "(exec >/dev/null 2>&1; echo 0 > {0}/cgroup.procs; \
         (echo 0 > {1}/cgroup.procs; exec sleep 1000) & exec sleep 1000) &",
        target.text(),
        below.text(),
    );
    ensure!(held.sh(&restore)? == 0);
    eventually("both are there", || {
        Ok(target.pids()?.len() == 1 && below.pids()?.len() == 1)
    })?;
    held.process().signal(Signal::SIGKILL)?;
    held.process().close_input();
    eventually("the guard ends", || Ok(guards()?.is_empty()))?;
    target.freeze()?;
    target.thaw()?;
    below.kill_all()?;
    target.kill_all()?;
    expect_clean()
}

fn older(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut shell = Process::spawn(Command::new("bash").args([
        "-c",
        "echo ready; read -r x; echo \"$1\" > \"$2\" && exit 0; exit 1",
        "bash",
        hierarchy.thawed(),
        &target.freezer().display().to_string(),
    ]))?;
    shell.expect_line("ready")?;
    let held = Held::new(&[&target])?;
    shell.tell("go")?;
    let finished = shell.wait(LONG)?.expect(1)?;
    ensure!(
        finished.stderr.contains("busy"),
        "bash says: {}",
        finished.stderr
    );
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    Ok(())
}

/// The kernel gives the memory of a task that has ended to one that begins. Holders of an
/// earlier guard may have been there, and have ended when no program counted any more.
fn reused(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    held.sh("for child in {1..100}; do sleep 1000 >/dev/null 2>&1 & done")?;
    guard(["end", &target.text(), "--force"])?.expect(0)?;
    expect_clean()?;
    // The kernel detaches in the background.
    sleep(Duration::from_secs(3));
    held.sh("kill -KILL $(jobs -p); wait")?;
    held.release()?.expect(73)?;

    let mut held = Held::new(&[&target])?;
    held.sh(&format!(
        "for child in {{1..100}}; do (echo {} > {}; kill -STOP $BASHPID) & done; sleep 2; \
         kill -KILL $(jobs -p); wait",
        hierarchy.frozen(),
        target.freezer().display(),
    ))?;
    held.release()?.expect(0)?.says("refused nothing")?;
    Ok(())
}
