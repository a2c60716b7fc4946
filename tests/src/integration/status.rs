//! What `status` and the summary tell.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    process::{Held, guard, guards, status, tool},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("states", states);
    list.add("guard", one_guard);
    list.add("text", text);
    list.add("of_no_cgroup", |_| {
        guard(["status", "/tmp"])?.expect(64)?;
        Ok(())
    });
}

fn states(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let path = target.text();
    let expect = |state: &str| -> Result<()> {
        let status = status(&[&path])?;
        ensure!(
            status["path"] == *path && status["state"] == state,
            "not {state}: {status}"
        );
        ensure!(
            status["guard"].is_null() == (state != "CHECKPOINTING"),
            "{status}"
        );
        Ok(())
    };
    expect("THAWED")?;
    target.freeze()?;
    expect("FROZEN")?;
    target.thaw()?;
    let held = Held::new(&[&target])?;
    expect("CHECKPOINTING")?;
    held.release()?.expect(0)?;
    expect("THAWED")?;
    workload.expect_counting()
}

fn one_guard(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    let pid_file = super::scratch("pid");
    held.sh(&format!("echo $$ > {}", pid_file.display()))?;
    let holder: u64 = fs::read_to_string(pid_file)?.trim().parse()?;
    for _ in 0..2 {
        let path = target.freezer().display().to_string();
        tool(["write", "write", &path, hierarchy.thawed()])?.expect(libc::EBUSY)?;
    }
    target.expect_refused("cgroup.procs", "1")?;

    let guards = guards()?;
    let [guard] = &guards[..] else {
        anyhow::bail!("not one guard: {guards:?}")
    };
    let list = |name: &str| guard[name].as_array().cloned().unwrap_or_default();
    ensure!(guard["state"] == "CHECKPOINTING", "{guard}");
    ensure!(list("cgroups") == [Value::from(target.text())], "{guard}");
    let holders = list("holder_pids");
    ensure!(
        holders.contains(&holder.into()),
        "{holder} does not hold {guard}"
    );
    let run = u64::try_from(held.process().pid().as_raw())?;
    ensure!(
        holders.contains(&run.into()),
        "`run` ({run}) does not hold {guard}"
    );
    ensure!(
        guard["held_seconds"]
            .as_f64()
            .is_some_and(|s| s > 0.0 && s < 60.0),
        "{guard}"
    );
    let denials = &guard["denials"];
    ensure!(
        denials["freeze"] == 2 && denials["migrate"] == 1 && denials["kill"] == 0,
        "{guard}"
    );
    let intruders = list("intruders");
    ensure!(
        intruders
            .iter()
            .any(|one| one["comm"] == "guest-tool" && one["protection"] == "freeze"),
        "{guard}"
    );
    held.release()?
        .expect(0)?
        .says("refused 3 attempts")?
        .says("by guest-tool (pid ")?;
    Ok(())
}

fn text(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    for arguments in [&["status"][..], &["status", &target.text()]] {
        let finished = guard(arguments)?.expect(0)?;
        for word in ["CHECKPOINTING", &target.text()] {
            ensure!(
                finished.stdout.contains(word),
                "no {word} in:\n{}",
                finished.stdout
            );
        }
    }
    held.release()?.expect(0)?;
    Ok(())
}
