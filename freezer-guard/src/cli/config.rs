//! `freezer-guard config`.

use std::{path::PathBuf, process::ExitCode};

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
    /// Say what is wrong with it, if anything; the service reads it at its start
    /// and when it is reloaded
    Check {
        /// The configuration
        #[arg(default_value = config::PATH)]
        file: PathBuf,
    },
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let Command::Check { file } = &args.command;
    Config::load(file).map_err(daemon::error::Error::from)?;
    say(format_args!("{} is fine", file.display()));
    Ok(ExitCode::SUCCESS)
}
