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
    if Path::new(SWITCH).exists() {
        list.add("before_the_begin", before);
        list.add_alone("before_the_first_begin", before_the_first);
        list.add("before_the_end", meanwhile);
        list.add("is_no_denial", counts_nothing);
    }
    list.add_alone("a_program_is_detached", detached);
}

const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";

/// Function tracing is off while this lives.
struct Off;

impl Off {
    /// `None`: this kernel does not let anybody switch it off (seen on 7.3).
    fn new() -> Result<Option<Self>> {
        match fs::write(SWITCH, "0") {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            switched => switched
                .map(|()| Some(Self))
                .with_context(|| format!("write {SWITCH}")),
        }
    }
}

impl Drop for Off {
    fn drop(&mut self) {
        fs::write(SWITCH, "1").expect("function tracing can be switched on again");
    }
}

fn before(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let before = guards()?.len();
    let Some(off) = Off::new()? else {
        return Ok(());
    };
    let run = ["run", "--freeze", "--cgroup", &target.text(), "--", "true"];
    guard(run)?.expect(69)?.says("kernel.ftrace_enabled=1")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    drop(off);
    ensure!(guards()?.len() == before, "a guard is left");
    guard(run)?.expect(0)?.says("refused nothing")?;
    Ok(())
}

fn before_the_first(hierarchy: Hierarchy) -> Result<()> {
    guard(["unload"])?.expect(0)?;
    before(hierarchy)?;
    expect_clean()
}

fn meanwhile(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let held = Held::new(&[&target])?;
    let Some(off) = Off::new()? else {
        held.release()?.expect(0)?;
        return Ok(());
    };
    // An intruder passes, unseen.
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    target.expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    let finished = held.release()?;
    drop(off);
    finished
        .expect(73)?
        .says("did not call the BPF programs")?
        .says("do not trust this checkpoint")?;
    workload.expect_counting()?;
    // Nothing of it is in the way of the next one.
    Held::new(&[&target])?.release()?.expect(0)?;
    Ok(())
}

/// The write that proves it is refused, and nobody hears of that.
fn counts_nothing(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let all = guards()?;
    let guards = all
        .iter()
        .filter(|guard| guard["cgroups"][0] == target.text());
    for guard in guards {
        ensure!(guard["denials"]["freeze"] == 0, "{guard}");
        ensure!(guard["unproven"] == false, "{guard}");
    }
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    Ok(())
}

/// By somebody who removes its pin: an access that this program had to notice leaves no trace.
fn detached(hierarchy: Hierarchy) -> Result<()> {
    for program in ["signal_generate", "task_kill"] {
        let target = Cgroup::new(hierarchy)?;
        let held = Held::new(&[&target])?;
        let pin = Path::new("/sys/fs/bpf/freezer-guard").join(program);
        fs::remove_file(&pin).with_context(|| format!("remove {}", pin.display()))?;
        held.release()?.expect(73)?.says("detached")?;
        Held::new(&[&target])?.release()?.expect(0)?;
    }
    expect_clean()
}
