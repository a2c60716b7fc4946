//! `freezer-guard daemon`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::daemon::{self, config};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    daemon::main(&args.config)
}
