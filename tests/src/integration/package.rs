//! The Debian package: installed first, upgraded, removed and purged last.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy},
    process::{Finished, Held, guards, run},
    service::{eventually, expect_anew, expect_idle, journal, main_pid, property},
};
use crate::config::PACKAGE_PATH;

pub(super) fn list(list: &mut List<'_>) {
    list.add("installs", install);
}

/// After the tests that need it.
pub(super) fn list_end(list: &mut List<'_>) {
    list.add("upgrades_while_a_guard_is_held", upgrade);
    list.add("is_not_removed_while_a_guard_is_held", refused);
    list.add("is_removed_and_purged", purge);
}

fn dpkg(arguments: &[&str]) -> Result<Finished> {
    run(Command::new("dpkg")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Installs it if it is not there.
pub(super) fn ensure_installed() -> Result<()> {
    if Path::new("/usr/bin/freezer-guard").exists() {
        return Ok(());
    }
    fs::create_dir_all("/var/lib/dpkg/updates")?;
    fs::create_dir_all("/var/lib/dpkg/info")?;
    for file in ["status", "available"] {
        let path = Path::new("/var/lib/dpkg").join(file);
        if !path.exists() {
            fs::write(path, "")?;
        }
    }
    dpkg(&["--install", PACKAGE_PATH])?.expect(0)?;
    eventually("it is ready", || {
        Ok(property("freezer-guard", "ActiveState")? == "active")
    })
}

fn install(_: Hierarchy) -> Result<()> {
    for unit in ["freezer-guard.socket", "freezer-guard.service"] {
        ensure!(property(unit, "UnitFileState")? == "enabled", "{unit}");
    }
    for path in [
        "/usr/share/man/man1/freezer-guard-daemon.1.gz",
        "/usr/share/man/man5/freezer-guard.toml.5.gz",
        "/usr/share/man/man7/io.freezerguard.7.gz",
        "/usr/share/bash-completion/completions/freezer-guard",
        "/usr/share/varlink/interfaces/io.freezerguard.varlink",
        "/usr/share/freezer-guard/schemas/status.json",
        "/usr/share/doc/freezer-guard/README.md",
        // Messages of errors name it.
        "/usr/share/doc/freezer-guard/docs/guide/troubleshooting.md",
        "/usr/share/freezer-guard/prometheus/freezer-guard.rules.yml",
        "/etc/freezer-guard/config.toml",
    ] {
        ensure!(Path::new(path).exists(), "there is no {path}");
    }
    expect_idle()
}

fn upgrade(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    let old = main_pid()?;
    dpkg(&["--install", PACKAGE_PATH])?.expect(0)?;
    expect_anew(old)?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    ensure!(held.sh("(:; :)")? == 0);
    ensure!(guards()?.len() == 1, "the guard is gone");
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    expect_idle()
}

fn refused(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let finished = dpkg(&["--remove", "freezer-guard"])?;
    ensure!(finished.code != 0, "it was removed");
    finished.says(&target.text())?.says("freezer-guard end")?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    ensure!(property("freezer-guard", "ActiveState")? == "active");
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    expect_idle()
}

fn purge(_: Hierarchy) -> Result<()> {
    ensure!(!journal()?.contains("panicked"), "{}", journal()?);
    dpkg(&["--remove", "freezer-guard"])?.expect(0)?;
    ensure!(
        !Path::new("/sys/fs/bpf/freezer-guard").exists(),
        "pins are left"
    );
    ensure!(Path::new("/etc/freezer-guard/config.toml").exists());
    dpkg(&["--purge", "freezer-guard"])?.expect(0)?;
    for path in [
        "/etc/freezer-guard",
        "/var/lib/freezer-guard",
        "/run/freezer-guard",
    ] {
        ensure!(!Path::new(path).exists(), "{path} is left");
    }
    Ok(())
}
