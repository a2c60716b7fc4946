//! `freezer-guard daemon`.

use std::{path::PathBuf, process::ExitCode};

use freezer_guard_abi::LogLevel;

use super::{error::Result, names::one_of};
use crate::daemon::{self, config};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// How much the kernel side tells of why it does what it does, in place of what the
    /// configuration says: for instance why a criu is no checkpointer (debug), or each
    /// refusal (trace)
    #[arg(long, value_name = "LEVEL", value_parser = one_of::<LogLevel>(LogLevel::NAMES))]
    kernel_log: Option<LogLevel>,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    Ok(daemon::main(&args.config, args.kernel_log)?)
}
