//! `freezer-guard daemon`.

use std::{path::PathBuf, process::ExitCode, str::FromStr as _};

use clap::ValueHint;
use freezer_guard_abi::LogLevel;

use super::{error::Result, names::one_of};
use crate::daemon::{self, Options, config, listen::Address};

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
    /// Serve the metrics over HTTP on this address, besides the sockets of freezer-guard-metrics.socket
    ///
    /// ADDRESS is IP:PORT, or unix: and the absolute path of a socket. You can repeat the option. For
    /// hosts without systemd: the sandbox of freezer-guard.service has no network. There is neither
    /// encryption nor a password, so prefer an address that only this host can reach.
    #[arg(long, value_name = "ADDRESS", value_parser = Address::from_str)]
    metrics: Vec<Address>,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    Ok(daemon::main(&Options {
        config: args.config.clone(),
        kernel_log: args.kernel_log,
        metrics: args.metrics.clone(),
    })?)
}
