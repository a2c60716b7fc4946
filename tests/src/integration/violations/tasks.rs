//! Signals to the tasks of a target, and traces of them.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload, eventually},
        lifecycle::expect_clean,
        process::{Held, LONG, Process, guards, tool},
    },
    child_of, violations,
};

/// The out-of-memory killer takes a task of the target.
pub(super) fn kernel_kills(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let child = child_of(&workload, &target)?;
    fs::write(format!("/proc/{child}/oom_score_adj"), "1000")?;
    let held = Held::new(&[&target])?;
    fs::write("/proc/sysrq-trigger", "f")?;
    eventually("the kernel kills it", || Ok(violations("kill")? == 1))?;
    held.release()?
        .expect(73)?
        .says(&format!("made the kernel send SIGKILL to pid {child}"))?;
    expect_clean()
}

pub(super) fn signals(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut held = Held::new(&[&target])?;
    let pid = Pid::from_raw(workload.pid);
    for signal in [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCONT] {
        ensure!(
            kill(pid, signal) == Err(nix::errno::Errno::EBUSY),
            "{signal} was not refused"
        );
    }
    // The workload ignores it; that it exists may be asked.
    kill(pid, Signal::SIGWINCH)?;
    kill(pid, None)?;
    for signal in ["STOP", "CONT"] {
        ensure!(
            held.sh(&format!("kill -{signal} {pid}"))? == 0,
            "the holder may not"
        );
    }
    held.release()?.expect(0)?.says("refused 3 attempts")?;
    workload.expect_counting()?;
    expect_clean()
}

/// One that nobody handles ends a frozen task at once on v2, so it is refused like
/// SIGKILL; where nothing is refused it is noticed. On v1 it may also wait, and is
/// saved with the rest: a task there may have a signal pending (`wants_signal`).
pub(super) fn fatal_signal(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let child = child_of(&workload, &target)?;
    let held = Held::new(&[&target])?;
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGTSTP] {
        let refused = kill(Pid::from_raw(child), signal);
        ensure!(
            refused == Err(nix::errno::Errno::EBUSY),
            "{signal}: {refused:?}"
        );
    }
    held.release()?.expect(0)?.says("refused 3 attempts")?;
    let mut held = Held::start(Held::command(&[&target]).args(["--level", "detect"]))?;
    held.wait_held()?;
    kill(Pid::from_raw(child), Signal::SIGTERM)?;
    let counted = violations("kill")?;
    ensure!(
        counted == 1 || hierarchy == Hierarchy::V1,
        "{:?}",
        guards()?
    );
    let at_once = counted > 0;
    let finished = held.release()?;
    if at_once {
        finished
            .expect(73)?
            .says(&format!("sent SIGTERM to pid {child}"))?;
    } else {
        finished.expect(0)?;
    }
    expect_clean()
}

/// Its own timer ends a frozen task at once on v2. The timer interrupts the holder, whose processes
/// keep the CPUs busy.
pub(super) fn alarm(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut sleeper =
        Process::spawn(Command::new("guest-tool").args(["mortal", &target.text(), "3"]))?;
    sleeper.expect_line("ready")?;
    let mut held = Held::new(&[&target])?;
    held.sh("for cpu in 1 2 3 4; do timeout 4 bash -c 'while :; do :; done' & done; wait")?;
    // On v1 the task ends when it is thawed; or the signal waits, and is saved with the rest.
    let counted = violations("kill")?;
    let finished = held.release()?;
    if counted > 0 || hierarchy == Hierarchy::V2 {
        finished.expect(73)?.says(&format!(
            "kernel (pid 0, uid 0) sent SIGALRM to pid {}",
            sleeper.pid()
        ))?;
    } else {
        finished.expect(0)?;
    }
    sleeper.wait(LONG)?.expect(128 + libc::SIGALRM)?;
    expect_clean()
}

/// The kernel sends it once. Refused, it would be lost, and the child would stay for ever.
pub(super) fn parent_death(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut parent = Process::spawn(Command::new("bash").args([
        "-c",
        "guest-tool mortal \"$1\" 1000 & echo $!; wait",
        "bash",
        &target.text(),
    ]))?;
    let child = parent.line()?;
    parent.expect_line("ready")?;
    let held = Held::new(&[&target])?;
    parent.signal(Signal::SIGKILL)?;
    eventually("it is noticed", || Ok(violations("kill")? == 1))?;
    held.release()?
        .expect(73)?
        .says(&format!("sent SIGKILL to pid {child}"))?
        .says("refused nothing")?;
    eventually("the child ends", || {
        Ok(!fs::exists(format!("/proc/{child}"))?)
    })?;
    parent.wait(LONG)?;
    expect_clean()
}

pub(super) fn ptrace(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let pid = workload.pid.to_string();
    let mut held = Held::new(&[&target])?;
    // `mm_access` turns every refusal into EACCES, `process_vm_rw` that into EPERM.
    for (way, errno) in [
        ("ptrace", libc::EBUSY),
        // Its SIGSTOP comes from the kernel.
        ("attach", libc::EBUSY),
        ("process_vm", libc::EPERM),
        ("mem", libc::EACCES),
    ] {
        tool(["access", way, &pid])?.expect(errno).context(way)?;
        ensure!(
            held.sh(&format!("guest-tool access {way} {pid}"))? == 0,
            "{way}: the holder may not"
        );
    }
    // Reading is left alone.
    for file in ["maps", "environ", "status", "exe"] {
        let path = format!("/proc/{pid}/{file}");
        fs::File::open(&path).context(path)?;
    }
    held.release()?.expect(0)?.says("refused 4 attempts")?;
    kill(Pid::from_raw(workload.pid), Signal::SIGCONT)?;
    workload.expect_counting()?;
    expect_clean()
}

/// Once the holder has let them run.
pub(super) fn among_themselves(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut shell = Process::spawn(Command::new("bash").args([
        "-c",
        "echo $$ > \"$1/cgroup.procs\"; echo ready; read -r x; \
         sleep 1000 & kill -STOP $!; kill -CONT $!; kill -KILL $!; echo \"killed $?\"",
        "bash",
        &target.text(),
    ]))?;
    shell.expect_line("ready")?;
    let mut held = Held::new(&[&target])?;
    held.thaw(&target)?;
    shell.tell("go")?;
    shell.expect_line("killed 0")?;
    held.release()?.expect(0)?.says("refused nothing")?;
    shell.wait(LONG)?;
    expect_clean()
}
