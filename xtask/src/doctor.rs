//! `cargo xtask doctor FILE`: shows a bundle that `freezer-guard doctor --bundle` wrote on another host, and
//! what this version decides for its facts.

use std::{
    path::{PathBuf, absolute},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::build::cargo;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file that `freezer-guard doctor --bundle` wrote
    file: PathBuf,
}

/// Exits with 1 if this version decides otherwise than that host, and with 3 if the bundle holds no complete
/// trial.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let file = absolute(&args.file).with_context(|| format!("find {}", args.file.display()))?;
    // cargo changes to the top of the workspace.
    let status = cargo()
        .args([
            "run",
            "--quiet",
            "--locked",
            "--package",
            "freezer-guard",
            "--",
            "replay",
        ])
        .arg(file)
        .status()
        .context("run cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
