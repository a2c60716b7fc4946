//! `freezer-guard run`: a checkpointer in the foreground.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use freezer_guard::criu;

use super::{
    error::Result,
    exit,
    guarded::{self, GuardedCommand, Options},
    say::say,
    target,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Guard this cgroup: its directory, or a systemd unit such as foo.service
    #[arg(long = "cgroup", value_name = "PATH", required_unless_present = "pid")]
    cgroups: Vec<PathBuf>,
    /// The root of the tree to be dumped: it has to be in the cgroup with all its
    /// descendants. Without --cgroup, guard the cgroups it is in. Known by itself
    /// when COMMAND is `criu dump -t PID`
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
    /// Freeze the cgroup first if it is thawed, and thaw it at the end
    #[arg(long)]
    freeze: bool,
    /// Thaw the cgroup as soon as it is CHECKPOINTING: for a checkpointer that does not
    /// use the freezer, and so would wait for the frozen tasks for ever. Such are `criu`
    /// without --freeze-cgroup, and crun's pre-dump
    #[arg(long)]
    thaw: bool,
    #[command(flatten)]
    options: Options,
    /// The checkpointer and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    pub(super) fn is_verbose(&self) -> bool {
        self.options.is_verbose()
    }
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let done = guarded::run(GuardedCommand {
        options: &args.options,
        targets: target::all(&args.cgroups, args.pid)?,
        named: !args.cgroups.is_empty(),
        root: args.pid.or_else(|| criu::dumped_tree(&args.command)),
        freeze: args.freeze,
        thaw: args.thaw,
        restores: false,
        command: &args.command,
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
