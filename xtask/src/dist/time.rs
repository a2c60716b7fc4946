//! Times, by date(1).

use std::{env, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::git;

/// Returns seconds since 1970: `$SOURCE_DATE_EPOCH` (reproducible-builds.org), or the time of the
/// commit.
pub(super) fn of_sources() -> Result<String> {
    if let Ok(time) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(time);
    }
    git::run(&["log", "-1", "--format=%ct"])
        .context("this is no clone, so its time is not known: set SOURCE_DATE_EPOCH")
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
