//! `freezer-guard undisturbed`: what CRIU asks, as its action script, when the images
//! are written and the tasks still wait. A failure makes it let them run on: whose
//! checkpoint is not good must not be lost.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use freezer_guard::guard::violations;

use super::{client, exit, say, status};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The guarded cgroup
    path: PathBuf,
}

/// The script for CRIU, which gives it to a shell.
pub(super) fn script(cgroup: &Path) -> Result<String> {
    let quoted = |path: &Path| {
        let text = path.to_str();
        let text = text.with_context(|| format!("{} is no text", path.display()))?;
        anyhow::Ok(format!("'{}'", text.replace('\'', r"'\''")))
    };
    let program = env::current_exe().context("find this program")?;
    Ok(format!(
        "exec {} undisturbed {}",
        quoted(&program)?,
        quoted(cgroup)?
    ))
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    // criu(8), --action-script: it is called at other stages too.
    if env::var("CRTOOLS_SCRIPT_ACTION").as_deref() != Ok("post-dump") {
        return Ok(ExitCode::SUCCESS);
    }
    let state = client::block_on(status::state(&args.path))?;
    Ok(match state.guard {
        Some(guard) if guard.violation_count() == 0 => ExitCode::SUCCESS,
        Some(guard) => {
            say(format_args!("VIOLATED: {}", violations(&guard).join("; ")));
            exit::VIOLATED.into()
        }
        None => exit::VIOLATED.into(),
    })
}
