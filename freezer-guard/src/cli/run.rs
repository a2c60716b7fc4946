//! `freezer-guard run`: a checkpointer in the foreground.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap_complete::engine::ArgValueCompleter;
use freezer_guard::criu;

use super::{
    complete,
    error::Result,
    exit,
    guarded::{self, GuardedCommand, Options},
    say::say,
    target,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Guard this cgroup: its directory, or a systemd unit such as foo.service
    ///
    /// Repeat the option to guard several cgroups.
    #[arg(long = "cgroup", value_name = "PATH", required_unless_present = "pid", add = ArgValueCompleter::new(complete::cgroups_and_units))]
    cgroups: Vec<PathBuf>,
    /// The root of the process tree that COMMAND dumps
    ///
    /// freezer-guard exits with 75 if a task of this tree is outside of the cgroups. Without
    /// --cgroup, it guards the cgroups that this process is in. By default the PID of
    /// `criu dump -t PID`, if that is COMMAND.
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
    /// Freeze the cgroup before COMMAND starts, and thaw it at the end
    ///
    /// A cgroup that is FROZEN already is FROZEN again at the end. Without this option the cgroup
    /// has to be FROZEN, or freezer-guard exits with 75.
    #[arg(long)]
    freeze: bool,
    /// Thaw the cgroup as soon as the guard is CHECKPOINTING
    ///
    /// A checkpointer that does not use the freezer needs it, because it would wait for the frozen
    /// tasks forever: `criu` without --freeze-cgroup, and the pre-dump of crun.
    #[arg(long)]
    thaw: bool,
    #[command(flatten)]
    options: Options,
    /// The checkpointer and its arguments, after `--`
    #[arg(
        last = true,
        required = true,
        value_name = "COMMAND",
        add = ArgValueCompleter::new(complete::CommandCompleter)
    )]
    command: Vec<OsString>,
}

impl Args {
    pub(super) fn is_verbose(&self) -> bool {
        self.options.is_verbose()
    }
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    if !args.thaw && criu::dumps_without_a_freezer(&args.command) {
        args.options.step(format_args!(
            "warning: without --freeze-cgroup CRIU waits for ever for frozen tasks: add that, or --thaw of `run`"
        ));
    }
    let done = guarded::run(GuardedCommand {
        options: &args.options,
        targets: target::all(&args.cgroups, args.pid)?,
        named: !args.cgroups.is_empty(),
        roots: args
            .pid
            .or_else(|| criu::dumped_tree(&args.command))
            .into_iter()
            .collect(),
        freeze: args.freeze,
        thaw: args.thaw,
        restores: false,
        commands: std::slice::from_ref(&args.command),
        meeting: None,
        watch: None,
    })?;
    if done.held() {
        return Ok(done.code().into());
    }
    say(format_args!(
        "do not trust this checkpoint: remove its image and take another"
    ));
    Ok(match done.is_excused(&args.options) {
        true => done.code().into(),
        false => exit::VIOLATED.into(),
    })
}
