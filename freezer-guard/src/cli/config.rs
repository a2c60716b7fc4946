//! `freezer-guard config`.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueHint;

use super::{error::Result, say::say};
use crate::daemon::{
    self,
    config::{self, Config},
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Check a configuration, and name the first error with its line
    ///
    /// The service reads the configuration when it starts and when systemd reloads it. A reload with
    /// an error changes nothing.
    Check {
        /// The file to check
        #[arg(default_value = config::PATH, value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let Command::Check { file } = &args.command;
    Config::load(file).map_err(daemon::error::Error::from)?;
    say(format_args!("{} is fine", file.display()));
    Ok(ExitCode::SUCCESS)
}
