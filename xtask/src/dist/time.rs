//! Times, by date(1).

use std::{env, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

use crate::build;

/// Returns seconds since 1970: `$SOURCE_DATE_EPOCH` (reproducible-builds.org), or the time of the
/// commit.
pub(super) fn of_sources() -> Result<String> {
    if let Ok(time) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(time);
    }
    git(&["log", "-1", "--format=%ct"])
        .context("this is no clone, so its time is not known: set SOURCE_DATE_EPOCH")
}

/// Returns the name of the commit.
pub(super) fn commit() -> String {
    git(&["rev-parse", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned())
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(build::workspace())
        .args(arguments)
        .output()
        .context("run git")?;
    if !output.status.success() {
        bail!("git: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Writes seconds since 1970 as date(1) does with this format.
pub(super) fn format(time: &str, format: &str) -> Result<String> {
    date(&format!("@{time}"), format)
}

/// Returns the seconds since 1970 at the begin of a day: `2026-12-01`.
pub(super) fn of_day(day: &str) -> Result<String> {
    date(day, "+%s")
}

fn date(time: &str, format: &str) -> Result<String> {
    let output = Command::new("date")
        .env("LC_ALL", "C")
        .args(["--utc", "--date", time, format])
        .output()
        .context("run date")?;
    ensure!(output.status.success(), "{time:?} is no time");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
