//! This program as CRIU's action script, which CRIU asks when the images are written
//! and the tasks still wait. A failure makes CRIU let them run on: whose checkpoint is
//! not good must not be lost.

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use freezer_guard::guard::violations;

use super::{client, exit, say, status};

/// criu(8), `--action-script`: the stage that it has come to.
const STAGE: &str = "CRTOOLS_SCRIPT_ACTION";

/// What to give to CRIU: it is executed as it stands, without arguments.
pub(super) fn script() -> Result<PathBuf> {
    env::current_exe().context("find this program")
}

/// The answer, if it is CRIU that asks.
pub(super) fn asked() -> Option<ExitCode> {
    let stage = env::var(STAGE).ok()?;
    if env::args_os().len() > 1 {
        return None;
    }
    Some(match stage.as_str() {
        "post-dump" => answer().unwrap_or_else(|error| {
            say(format_args!("{error:#}"));
            exit::of_error(&error).into()
        }),
        _ => ExitCode::SUCCESS,
    })
}

/// Whether the guard whose checkpointer we belong to is there, and has held so far.
fn answer() -> Result<ExitCode> {
    let own = std::process::id();
    let guards = client::block_on(status::list())?;
    let guard = guards
        .into_iter()
        .find(|guard| guard.holder_pids.contains(&own));
    let Some(guard) = guard else {
        say(format_args!("the guard of this checkpoint has been ended"));
        return Ok(exit::VIOLATED.into());
    };
    if guard.violation_count() == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    say(format_args!("VIOLATED: {}", violations(&guard).join("; ")));
    Ok(exit::VIOLATED.into())
}
