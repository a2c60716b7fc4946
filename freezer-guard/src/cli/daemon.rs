//! `freezer-guard daemon`.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueHint;
use freezer_guard_abi::LogLevel;

use super::{error::Result, names::one_of};
use crate::daemon::{self, config};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Read the configuration from this file
    #[arg(long, value_name = "FILE", default_value = config::PATH, value_hint = ValueHint::FilePath)]
    config: PathBuf,
    /// How much the BPF programs log of their decisions
    ///
    /// At debug they log the reason why a criu is no checkpointer, at trace also each refusal. The
    /// default is log.kernel of the configuration.
    #[arg(long, value_name = "LEVEL", value_parser = one_of::<LogLevel>(LogLevel::NAMES))]
    kernel_log: Option<LogLevel>,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    Ok(daemon::main(&args.config, args.kernel_log)?)
}
