//! The programs that are checkpointers for the service.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy},
        configured::Configured,
        process::{LONG, guards, run, status},
        service::{eventually, expect_idle, is_attached, journal},
    },
    FakeCriu, sh, write,
};

pub(super) fn files(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let freeze = |path: &Path| -> Result<()> {
        let writes = [hierarchy.frozen(), hierarchy.thawed()].map(|value| write(&target, value));
        run(Command::new(path).args(["-c", &writes.join(";")]))?
            .expect(0)
            .map(drop)
    };
    let owned = FakeCriu::new()?;
    chown(&owned.path, Some(1000), None)?;
    freeze(&owned.path)?;
    let writable = FakeCriu::new()?;
    fs::set_permissions(&writable.path, fs::Permissions::from_mode(0o775))?;
    freeze(&writable.path)?;
    let renamed = FakeCriu::new()?;
    let other = renamed.path.with_file_name("criu-ns");
    fs::rename(&renamed.path, &other)?;
    freeze(&other)?;
    ensure!(guards()?.is_empty(), "{:?}", guards()?);
    eventually("the journal names the two that are called criu", || {
        Ok(journal()?
            .matches("is not trusted, so its dumps have no guard")
            .count()
            >= 2)
    })?;
    // And the same is seen when it is root's alone: that guard, and none before.
    freeze(&FakeCriu::new()?.path)?;
    expect_idle()?;
    let mut count = 0;
    eventually("its guard is remembered", || {
        let last = status(&["--last"])?;
        let all = last["guards"].as_array().context("a list")?.iter();
        count = all
            .filter(|guard| guard["cgroups"][0] == target.text())
            .count();
        Ok(count >= 1)
    })?;
    ensure!(count == 1, "{count} guards");
    Ok(())
}

pub(super) fn off(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let configured = Configured::new("[automatic]\nenabled = false\n")?;
    eventually("it does not watch", || {
        Ok(!is_attached("bprm_committed_creds"))
    })?;
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    ensure!(guards()?.is_empty());
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    drop(configured);
    eventually("it watches again", || {
        Ok(is_attached("bprm_committed_creds"))
    })
}

/// A distribution may have another name for CRIU's program.
pub(super) fn names(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let other = FakeCriu::called("criu-wrapped.of-30-bytes-exactly")?;
    let _configured =
        Configured::new("[automatic]\nnames = [\"criu\", \"criu-wrapped.of-30-bytes-exactl\"]\n")?;
    let wrapped = FakeCriu::called("criu-wrapped.of-30-bytes-exactl")?;
    let mut criu = wrapped.start()?;
    eventually("the other name is one of a checkpointer", || {
        criu = wrapped.start()?;
        sh(&mut criu, &write(&target, hierarchy.frozen()))?;
        let is_guarded = !guards()?.is_empty();
        sh(&mut criu, &write(&target, hierarchy.thawed()))?;
        Ok(is_guarded)
    })?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()?;
    // A longer name is another one.
    let mut longer = other.start()?;
    sh(&mut longer, &write(&target, hierarchy.frozen()))?;
    ensure!(guards()?.is_empty(), "{:?}", guards()?);
    sh(&mut longer, &write(&target, hierarchy.thawed()))?;
    longer.close_input();
    longer.wait(LONG)?.expect(0)?;
    Ok(())
}
