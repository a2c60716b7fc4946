//! A boot without `bpf` in the LSM list, where a guard would enforce nothing.

use anyhow::{Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy},
    process::{Held, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("refuses_to_pretend", refuses);
}

fn refuses(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let finished = run(Held::command(&[&target]).args(["--", "echo", "ran"]))?;
    let finished = finished.expect(69)?.says("lsm=")?;
    ensure!(!finished.stdout.contains("ran"), "COMMAND was run");
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    Ok(())
}
