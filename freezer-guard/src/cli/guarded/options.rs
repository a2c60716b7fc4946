//! What `run`, `checkpoint` and `restore` are told of the guard on the command line.

use std::{fmt::Arguments, time::Duration};

use freezer_guard::words;
use freezer_guard_abi::{Level, Protection};

use crate::cli::error::Error;
use crate::cli::{names::one_of, say::say};

#[derive(clap::Args)]
pub(in crate::cli) struct Options {
    /// Exit with 75 if the tasks have not frozen after this time, such as 30s
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = words::duration)]
    pub(super) freeze_timeout: Duration,
    /// End the checkpointer after this time, such as 5m
    ///
    /// freezer-guard sends SIGTERM to the checkpointer and, after 5 seconds, SIGKILL to all its
    /// processes; then it releases the guard. By default the checkpointer has no time limit.
    #[arg(long, value_name = "DUR", value_parser = words::duration)]
    pub(super) timeout: Option<Duration>,
    /// Wait until a guard that is in the way has ended, for DUR at most
    ///
    /// Without DUR it waits without a limit. By default a guard that is in the way, or that has another
    /// level, makes the command exit with 75 at once. Nothing is frozen meanwhile.
    #[arg(long, value_name = "DUR", num_args = 0..=1, require_equals = true, value_parser = words::duration)]
    pub(super) wait: Option<Option<Duration>>,
    /// Lift one protection; repeat the option to lift several
    ///
    /// The guard then neither refuses nor detects the accesses that this protection covers. By
    /// default all protections are in force.
    #[arg(long, value_name = "NAME", value_parser = one_of::<Protection>(Protection::NAMES))]
    pub(super) allow: Vec<Protection>,
    /// Exit with 69 if the host cannot reach this level
    ///
    /// The level holds for each protection that --allow does not lift. With enforce, no access
    /// gets past the guard that the guard can refuse. With best-effort, a preemptible kernel may let a disturbance
    /// through, and the guard detects it. With detect, the guard refuses nothing and detects all.
    /// The default is best-effort, or the level of --level if that is weaker.
    #[arg(long, value_name = "LEVEL", value_parser = one_of::<Level>(Level::NAMES))]
    pub(super) require: Option<Level>,
    /// Use no stronger level than this, although the host could
    ///
    /// With detect, the guard refuses nothing. It detects each disturbance, and the command exits
    /// with 73.
    #[arg(long, value_name = "LEVEL", default_value = "enforce", value_parser = one_of::<Level>(Level::NAMES))]
    pub(super) level: Level,
    /// The effect of a violation, which is a disturbance that the guard could not prevent
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub(in crate::cli) on_violation: OnViolation,
    /// Print errors and violations only
    #[arg(short, long, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Print each refused attempt as it happens
    ///
    /// If the kernel rejects a BPF program, this also prints the log of its verifier.
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
    /// Let the checkpointer finish, and exit with 73
    #[default]
    Fail,
    /// Report the violation, and exit with the code of the checkpointer
    Warn,
    /// Kill the checkpointer immediately, and exit with 73
    Kill,
}
