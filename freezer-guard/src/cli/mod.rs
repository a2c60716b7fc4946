//! One file per subcommand. They decide nothing: they call the library and print.

mod action_script;
mod checkpoint;
mod client;
mod config;
mod daemon;
mod doctor;
mod driver;
mod end;
mod error;
mod events;
mod exit;
mod generate;
mod guarded;
mod names;
mod report;
mod restore;
mod run;
mod say;
mod status;
mod target;
mod terminal;
#[cfg(test)]
mod tests;
mod unload;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use freezer_guard::{VERSION, guard};

use error::Result;
use say::{say, say_help, say_verifier_log};

/// While a container is being checkpointed, nobody but the checkpointer
/// freezes, thaws or otherwise disturbs its cgroup.
#[derive(Parser)]
#[command(version = VERSION, about, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a checkpointer while its container's cgroup is guarded
    Run(run::Args),
    /// Checkpoint a process tree with CRIU, guarded from its freeze to its end
    Checkpoint(checkpoint::Args),
    /// Restore such a checkpoint, guarded likewise
    Restore(restore::Args),
    /// Check that a process tree is all in one cgroup, as `run` does
    Verify(verify::Args),
    /// Show every guard, or the state of one cgroup
    Status(status::Args),
    /// Show one checkpoint as a timeline: its guard, what CRIU did, who disturbed it
    ///
    /// For an image it uses the evidence that `freezer-guard checkpoint` leaves in the image's
    /// directory, and CRIU's log and statistics there. For a guard that has ended (--last) it uses
    /// what the service remembers, and the journal. It says what they do not tell. It succeeds for
    /// a checkpoint that was violated, too.
    Report(report::Args),
    /// Show what happens to guarded cgroups: refusals, violations, begins, ends
    Events(events::Args),
    /// Check whether this host can guard checkpoints, and what to do if not
    Doctor(doctor::Args),
    /// End a guard by force: an administrator's way out
    End(end::Args),
    /// Take the BPF programs out of the kernel; the next guard loads them again
    ///
    /// They stay loaded after the last guard, detached, so that the next one begins quickly.
    /// This fails with 75 while a guard is in force or the service runs. It also removes what
    /// another version of freezer-guard has loaded.
    Unload,
    /// Run the host's service: guard every checkpoint, answer on a socket
    Daemon(daemon::Args),
    /// Check the configuration of the service
    Config(config::Args),
}

pub(crate) fn main() -> ExitCode {
    if let Some(code) = generate::asked(Cli::command) {
        return code;
    }
    if let Some(code) = action_script::asked() {
        return code;
    }
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
    let verbose = match &cli.command {
        Command::Run(args) => args.is_verbose(),
        Command::Checkpoint(args) => args.is_verbose(),
        Command::Restore(args) => args.is_verbose(),
        _ => false,
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{}", guard::chain(&error)));
            if verbose {
                error.kernel_errors().into_iter().for_each(say_verifier_log);
            }
            let code = error.code();
            say_help(code);
            code.into()
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::main(&args),
        Command::Checkpoint(args) => checkpoint::main(&args),
        Command::Restore(args) => restore::main(&args),
        Command::Verify(args) => verify::main(&args),
        Command::Events(args) => events::main(&args),
        Command::Status(args) => status::main(&args),
        Command::Report(args) => report::main(&args),
        Command::Doctor(args) => doctor::main(&args),
        Command::End(args) => end::main(&args),
        Command::Unload => unload::main(),
        Command::Daemon(args) => daemon::main(&args),
        Command::Config(args) => config::main(&args),
    }
}
