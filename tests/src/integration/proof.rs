//! Attached is not called: while function tracing is off, the kernel calls no program.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    lifecycle::expect_clean,
    process::{Held, guard, guards},
};

pub(super) fn list(list: &mut List<'_>) {
    if can_switch() {
        list.add_alone("before_the_begin", beside);
        list.add_alone("before_the_first_begin", before_the_first);
        list.add_alone("before_the_end", |h| meanwhile(h, true));
        list.add_alone("off_and_on_again", |h| meanwhile(h, false));
        list.add_alone("at_detect", at_detect);
        list.add_alone("at_detect_before_the_begin", at_detect_before);
    }
    list.add("is_no_denial", counts_nothing);
    list.add_alone("a_program_is_detached", detached);
}

const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";

/// Function tracing is off while this lives.
struct Off;

impl Off {
    fn new() -> Result<Self> {
        fs::write(SWITCH, "0").with_context(|| format!("write {SWITCH}"))?;
        Ok(Self)
    }
}

/// Whether this kernel lets root switch function tracing off: 7.3 answers EOPNOTSUPP. No program
/// is attached when the list of tests is made.
fn can_switch() -> bool {
    match fs::write(SWITCH, "0") {
        Ok(()) => {
            drop(Off);
            true
        }
        Err(error) => {
            let known = [Some(libc::EOPNOTSUPP), Some(libc::ENOENT)];
            assert!(known.contains(&error.raw_os_error()), "{SWITCH}: {error}");
            false
        }
    }
}

impl Drop for Off {
    fn drop(&mut self) {
        fs::write(SWITCH, "1").expect("function tracing can be switched on again");
    }
}

/// Beside another guard all programs are attached, and the proof fails. That one has no proof either.
fn beside(hierarchy: Hierarchy) -> Result<()> {
    let other = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&other])?;
    before(hierarchy, "does not call the attached BPF programs")?;
    held.release()?.expect(73)?.says("did not call")?;
    Ok(())
}

/// `why`: see [`beside`]; alone, nothing is attached while function tracing is off.
fn before(hierarchy: Hierarchy, why: &str) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let before = guards()?.len();
    let off = Off::new()?;
    let run = ["run", "--freeze", "--cgroup", &target.text(), "--", "true"];
    guard(run)?
        .expect(69)?
        .says(why)?
        .says("kernel.ftrace_enabled=1")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    drop(off);
    ensure!(guards()?.len() == before, "a guard is left");
    guard(run)?.expect(0)?.says("refused nothing")?;
    Ok(())
}

fn before_the_first(hierarchy: Hierarchy) -> Result<()> {
    guard(["unload"])?.expect(0)?;
    before(hierarchy, "function tracing is off")?;
    expect_clean()
}

/// `to_the_end`: function tracing is off when the guard ends.
fn meanwhile(hierarchy: Hierarchy, to_the_end: bool) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let held = Held::new(&[&target])?;
    let off = Off::new()?;
    // An intruder passes, unseen.
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    target.expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    let mut off = Some(off).filter(|_| to_the_end);
    let finished = held.release()?;
    drop(off.take());
    finished
        .expect(73)?
        .says("did not call the BPF programs")?
        .says("do not trust this checkpoint")?;
    workload.expect_counting()?;
    // Nothing of it is in the way of the next one.
    Held::new(&[&target])?.release()?.expect(0)?;
    Ok(())
}

/// There nothing is refused that could prove anything.
fn at_detect(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    guard(["unload"])?.expect(0)?;
    let mut command = Held::command(&[&target]);
    let mut held = Held::start(command.args(["--level", "detect"]))?;
    held.wait_held()?;
    drop(Off::new()?);
    held.release()?.expect(73)?.says("did not call")?;
    expect_clean()
}

/// Beside another guard nothing is left to attach, and the guard makes no write that would be refused.
fn at_detect_before(hierarchy: Hierarchy) -> Result<()> {
    guard(["unload"])?.expect(0)?;
    let [target, other] = [Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?];
    let mut command = Held::command(&[&other]);
    let mut held = Held::start(command.args(["--level", "detect"]))?;
    held.wait_held()?;
    let off = Off::new()?;
    let mut command = Held::command(&[&target]);
    let second = Held::start(command.args(["--level", "detect"]))?;
    second
        .release()?
        .expect(69)?
        .says("does not call the attached BPF programs")?;
    drop(off);
    held.release()?.expect(73)?;
    expect_clean()
}

/// The guard refuses the write of the proof, and counts no denial.
fn counts_nothing(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let all = guards()?;
    let guard = all
        .iter()
        .find(|guard| guard["cgroups"][0] == target.text())
        .context("the guard is listed")?;
    ensure!(guard["denials"]["freeze"] == 0, "{guard}");
    ensure!(guard["unproven"] == false, "{guard}");
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    Ok(())
}

/// Root removes the pin of a program during a guard: the program can detect nothing any more.
fn detached(hierarchy: Hierarchy) -> Result<()> {
    for program in ["number_set_exit", "signal_generate", "task_kill"] {
        let target = Cgroup::new(hierarchy)?;
        let held = Held::new(&[&target])?;
        let pin = Path::new("/sys/fs/bpf/freezer-guard").join(program);
        fs::remove_file(&pin).with_context(|| format!("remove {}", pin.display()))?;
        held.release()?.expect(73)?.says("detached")?;
        Held::new(&[&target])?.release()?.expect(0)?;
    }
    expect_clean()
}
