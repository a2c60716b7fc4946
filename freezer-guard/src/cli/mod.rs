//! One file per subcommand. They decide nothing: they call the library and print.

mod end;
mod events;
mod exit;
mod run;
mod status;
mod target;
mod verify;

use std::{io::Write as _, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// While a container is being checkpointed, nobody but the checkpointer
/// freezes, thaws or otherwise disturbs its cgroup.
#[derive(Parser)]
#[command(version, about, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a checkpointer while its container's cgroup is guarded
    Run(run::Args),
    /// Check that a process tree is all in one cgroup, as `run` does
    Verify(verify::Args),
    /// Show every guard, or the state of one cgroup
    Status(status::Args),
    /// Show what happens to guarded cgroups: refusals, violations, begins, ends
    Events(events::Args),
    /// End a guard by force: an administrator's way out
    End(end::Args),
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a closed pipe is nobody's concern.
            let _ = error.print();
            return if error.use_stderr() {
                exit::USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{error:#}"));
            exit::of_error(&error).into()
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::main(&args),
        Command::Verify(args) => verify::main(&args),
        Command::Events(args) => events::main(&args),
        Command::Status(args) => status::main(&args),
        Command::End(args) => end::main(&args),
    }
}

/// One line on standard error.
fn say(line: std::fmt::Arguments<'_>) {
    // Nobody may be listening any more: that must not end a guard.
    let _ = writeln!(std::io::stderr(), "freezer-guard: {line}");
}
