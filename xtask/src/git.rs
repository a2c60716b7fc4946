//! The commit, by git.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build, digest};

/// The book, and the texts beside it: no guest runs by what they say.
const TEXTS: [&str; 2] = [":(exclude)docs", ":(exclude,glob)*.md"];

/// Returns the name of the commit.
pub(crate) fn commit() -> String {
    run(&["rev-parse", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned())
}

/// Returns a digest of the commit's files without [`TEXTS`]. Fails if one differs from the commit.
pub(crate) fn sources() -> Result<String> {
    let with = |arguments: &[&str]| run(&[arguments, &["--", "."], &TEXTS].concat());
    let changes = with(&["status", "--porcelain"])?;
    ensure!(
        changes.is_empty(),
        "commit or stash your changes:\n{changes}"
    );
    let files = with(&["ls-files", "--stage"])?;
    Ok(digest::sha256(files.as_bytes()))
}

/// Returns the output of git without its last newline.
pub(crate) fn run(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(build::workspace())
        .args(arguments)
        .output()
        .context("run git")?;
    if !output.status.success() {
        bail!("git: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
