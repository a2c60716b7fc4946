//! What `run`, `checkpoint` and `restore` are told of the guard on the command line.

use std::{fmt::Arguments, time::Duration};

use freezer_guard::words;
use freezer_guard_abi::{Level, Protection};

use crate::cli::error::Error;
use crate::cli::{names::one_of, say::say};

#[derive(clap::Args)]
pub(in crate::cli) struct Options {
    /// How long its tasks may take to freeze
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = words::duration)]
    pub(super) freeze_timeout: Duration,
    /// End the checkpointer and release the guard after this time, such as 5m
    #[arg(long, value_name = "DUR", value_parser = words::duration)]
    pub(super) timeout: Option<Duration>,
    /// Lift one protection: its acts are neither refused nor a violation. May be
    /// given several times; without it, all are in force
    #[arg(long, value_name = "NAME", value_parser = one_of::<Protection>(Protection::NAMES))]
    pub(super) allow: Vec<Protection>,
    /// The least that has to be possible on this host, for each protection that is
    /// not lifted: enforce refuses; best-effort does so on kernels without BPF
    /// LSM, and may let something through; detect only tells of it. By default
    /// best-effort, or what --level says
    #[arg(long, value_name = "LEVEL", value_parser = one_of::<Level>(Level::NAMES))]
    pub(super) require: Option<Level>,
    /// Use no stronger level than this: detect refuses nothing
    #[arg(long, value_name = "LEVEL", default_value = "enforce", value_parser = one_of::<Level>(Level::NAMES))]
    pub(super) level: Level,
    /// What to do when something got through: fail at the end, only warn, or
    /// kill the checkpointer at once and fail
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub(in crate::cli) on_violation: OnViolation,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Print everything that is refused as it happens, and when the kernel refuses a
    /// BPF program, its verifier's log
    #[arg(short, long)]
    pub(super) verbose: bool,
}

impl Options {
    pub(in crate::cli) fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// A step, unless `--quiet`.
    pub(in crate::cli) fn step(&self, line: Arguments<'_>) {
        if !self.quiet {
            say(line);
        }
    }

    pub(super) fn required(&self) -> Result<Level, Error> {
        match self.require {
            None => Ok(self.level.min(Level::BestEffort)),
            Some(required) if required > self.level => Err(Error::Contradiction {
                required: required.name(),
                level: self.level.name(),
            }),
            Some(required) => Ok(required),
        }
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum OnViolation {
    /// End with 73
    #[default]
    Fail,
    /// Say so, and end as the checkpointer did
    Warn,
    /// Kill the checkpointer at once, and end with 73
    Kill,
}
