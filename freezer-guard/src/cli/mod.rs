//! One file per subcommand. They decide nothing: they call the library and print.

mod action_script;
mod checkpoint;
mod client;
mod complete;
mod config;
mod daemon;
mod doctor;
mod driver;
mod end;
mod error;
mod events;
mod exit;
mod guarded;
mod names;
mod reference;
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

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use freezer_guard::{VERSION, guard};

use error::Result;
use say::{say, say_help, say_verifier_log};

/// The name of the program.
const NAME: &str = "freezer-guard";

/// Prevent other processes from disturbing a checkpoint
///
/// A checkpointer such as CRIU freezes the cgroup of a container, and thaws it again to work in it. If
/// another process freezes, thaws, kills, moves or traces the tasks meanwhile, the checkpoint can
/// hang, fail or, worst of all, report success for a corrupt image. freezer-guard puts the cgroup
/// under a guard while the checkpointer runs. The kernel then refuses such an access with EBUSY
/// (Device or resource busy), also to root, and detects each disturbance that still happens. So a
/// guarded checkpoint that reports success was not disturbed.
#[derive(Parser)]
#[command(name = NAME, version = VERSION, after_help = exit::help(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a checkpointer while a guard protects the cgroup
    ///
    /// freezer-guard begins the guard, checks that the whole process tree is in the cgroup, and then
    /// runs COMMAND. Only COMMAND and its descendants may freeze, thaw, signal, move or trace the
    /// tasks of the cgroup. The guard ends with the last of these processes, even if freezer-guard
    /// itself has crashed.
    Run(run::Args),
    /// Checkpoint a process tree with CRIU under a guard
    ///
    /// freezer-guard checks that CRIU works on this kernel, freezes the cgroup, checks that the whole
    /// process tree is in it, and has CRIU dump the tree. The image gets its name only if it is
    /// complete and undisturbed. After a violation CRIU lets the tree run on.
    ///
    /// Name several trees, such as the containers of a pod, to checkpoint them at one moment:
    /// freezer-guard freezes all of them before a CRIU dumps the first one, and keeps the images of
    /// all or of none. If one dump fails, all trees run on.
    Checkpoint(checkpoint::Args),
    /// Restore a checkpoint with CRIU under a guard
    ///
    /// freezer-guard guards the cgroup that CRIU restores the tree into. It refuses an image whose
    /// evidence (freezer-guard.json) does not call it good.
    Restore(restore::Args),
    /// Check that a whole process tree is in a cgroup
    ///
    /// `run` and `checkpoint` make the same check before they start CRIU. The command needs no BPF.
    Verify(verify::Args),
    /// Show all guards, or the state of one cgroup
    ///
    /// For each guard it shows the cgroups, the holder, the refused attempts and the violations. It
    /// asks the service, or the kernel if there is no service, which takes root.
    Status(status::Args),
    /// Show one checkpoint as a timeline
    ///
    /// The timeline shows the guard, the steps of CRIU, and the processes that disturbed the checkpoint or
    /// tried to. For an image it uses the evidence that `freezer-guard checkpoint` leaves in the directory
    /// of the image, and CRIU's log and statistics there. With --last it uses the history of the service
    /// and the journal. It names each fact that these do not hold. It exits with 0 also for a violated
    /// checkpoint.
    Report(report::Args),
    /// Show the events of guards: begins, refusals, violations, ends
    ///
    /// Without --follow it prints the events of the guards in force and exits.
    Events(events::Args),
    /// Check whether this host can guard checkpoints
    ///
    /// It names a remedy for each problem. At the end it guards a cgroup of its own for a moment and
    /// tries to disturb it.
    Doctor(doctor::Args),
    /// End a guard by force
    ///
    /// This is an administrator's way out if a checkpointer hangs. The cgroup keeps its state: thaw
    /// it if it is FROZEN.
    End(end::Args),
    /// Unload the BPF programs; the next guard loads them again
    ///
    /// After the last guard the programs stay loaded and detached, so that the next guard begins
    /// quickly. `unload` exits with 75 while a guard is in force or the service runs. It also removes
    /// the programs of another version of freezer-guard.
    Unload,
    /// Run the service: guard all checkpoints of this host, and answer on a socket
    ///
    /// systemd starts it as freezer-guard.service. The service guards each checkpoint that no other
    /// guard covers, keeps the history of guards, and serves the Varlink interface io.freezerguard.
    /// Guards are in the kernel: if the service stops, they stay in force.
    Daemon(daemon::Args),
    /// Check the configuration of the service
    ///
    /// freezer-guard.toml(5) describes the configuration.
    Config(config::Args),
}

pub(crate) fn main() -> ExitCode {
    // First: CRIU takes an exit with 0 for a yes.
    if let Some(code) = action_script::asked() {
        return code;
    }
    complete::asked(Cli::command);
    if let Some(code) = reference::asked(Cli::command) {
        return code;
    }
    let mut command = reference::with_examples(Cli::command());
    let parsed = command
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed.map_err(|error| error.format(&mut command)) {
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
