//! `freezer-guard run`: a checkpointer in the foreground.

use std::{
    fmt::Arguments,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use freezer_guard::{
    cgroup::{self, Cgroup},
    guard::{self, Before, Deed, Guard, Outcome, Status, Target},
    kernel::Reader,
};
use freezer_guard_ebpf::{EventKind, Protection};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{AccessFlags, Pid, access},
};
use tokio::{
    process::{Child, Command},
    time::{Instant, interval, sleep, sleep_until},
};

use super::{
    exit::{self, Code},
    say,
    status::{refusals, violations},
    target, verify,
};

mod criu;
pub(super) mod signals;

use signals::Signals;

/// How long a process may take to end after a polite signal.
const GRACE: Duration = Duration::from_secs(5);
/// How often the freezer is asked whether it is done.
const POLL: Duration = Duration::from_millis(5);
/// How often the counters are looked at while COMMAND runs.
const CHECK: Duration = Duration::from_secs(1);

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
    /// How long its tasks may take to freeze
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = humantime::parse_duration)]
    freeze_timeout: Duration,
    /// End COMMAND and release the guard after this time, such as 5m
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Lift one protection: its acts are neither refused nor a violation. May be
    /// given several times; without it, all are in force
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Protection::ALL.map(Protection::name)))]
    allow: Vec<String>,
    /// What to do when something got through: fail at the end, only warn, or
    /// kill COMMAND at once and fail
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    on_violation: OnViolation,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Print everything that is refused as it happens
    #[arg(short, long)]
    verbose: bool,
    /// The checkpointer and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum OnViolation {
    /// End with 73
    #[default]
    Fail,
    /// Say so, and end as COMMAND did
    Warn,
    /// Kill COMMAND at once, and end with 73
    Kill,
}

/// What only `run` can run into.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{} did not freeze within {}: {}; it was left as it was found", path.display(), humantime::format_duration(*after), tasks.join(", "))]
    DidNotFreeze {
        path: PathBuf,
        after: Duration,
        tasks: Vec<String>,
    },
    #[error("{command}")]
    Command {
        command: String,
        source: std::io::Error,
    },
    #[error("interrupted by {0} before COMMAND was started")]
    Interrupted(Signal),
}

impl Error {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::DidNotFreeze { .. } => exit::BUSY,
            Self::Command { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                exit::NOT_FOUND
            }
            Self::Command { .. } => exit::CANNOT_EXECUTE,
            Self::Interrupted(signal) => Code(128 + *signal as u8),
        }
    }
}

/// A step, unless `--quiet`.
struct Steps {
    quiet: bool,
}

impl Steps {
    fn say(&self, line: Arguments<'_>) {
        if !self.quiet {
            say(line);
        }
    }
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    // One thread: it becomes the first member of the holder.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}

async fn run(args: &Args) -> Result<ExitCode> {
    let steps = Steps { quiet: args.quiet };
    find_command(&args.command[0])?;
    let targets = target::all(&args.cgroups, args.pid)?;
    if args.freeze {
        refuse_own(&targets)?;
    }
    let allowed: Vec<_> = Protection::ALL
        .into_iter()
        .filter(|protection| args.allow.iter().any(|name| name == protection.name()))
        .collect();
    let mut signals = Signals::catch()?;

    let mut guard = Guard::begin(targets, &allowed)?;
    let names = names(guard.cgroups());
    steps.say(format_args!("guarding {names}"));
    let reader = match args.verbose || args.on_violation == OnViolation::Kill {
        true => Some(guard::follow()?.0),
        false => None,
    };
    prepare(args, &steps, &mut guard, &mut signals).await?;
    if let Some(signal) = signals.pending()? {
        return Err(Error::Interrupted(signal).into());
    }
    steps.say(format_args!(
        "{names}: CHECKPOINTING; running {}",
        args.command.join(" ")
    ));

    let mut child = spawn(&args.command)?;
    let supervised = supervise(args, &steps, &guard, reader, &mut child, &mut signals);
    let status = match supervised.await {
        Ok(status) => status,
        Err(error) => {
            // Without us nobody minds COMMAND, and without COMMAND no guard is needed.
            let _ = guard.kill_holder();
            let _ = child.kill().await;
            return Err(error);
        }
    };
    steps.say(format_args!("{} ended with {status}", args.command[0]));
    let stragglers = guard.other_pids()?;
    if !stragglers.is_empty() {
        steps.say(format_args!(
            "still running without the guard: pid {stragglers:?}"
        ));
    }
    let Some(guarded) = guard.end()? else {
        say(format_args!(
            "the guard of {names} was ended by somebody before {} was done: \
             do not trust this checkpoint, take another",
            args.command[0]
        ));
        return Ok(exit::VIOLATED.into());
    };
    steps.say(format_args!(
        "held {names} for {:.1} s, {}",
        guarded.held_seconds,
        refusals(&guarded)
    ));
    if guarded.violation_count() > 0 {
        say_violated(&names, &guarded);
        if args.on_violation != OnViolation::Warn {
            return Ok(exit::VIOLATED.into());
        }
    }
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// From the mark to CHECKPOINTING: freezes, verifies, and begins again when
/// somebody has disturbed that, for instance by a write that was under way.
async fn prepare(
    args: &Args,
    steps: &Steps,
    guard: &mut Guard,
    signals: &mut Signals,
) -> Result<()> {
    let root = args.pid.or_else(|| criu::dumped_tree(&args.command));
    let deadline = Instant::now() + args.freeze_timeout;
    loop {
        if let Some(signal) = signals.pending()? {
            return Err(Error::Interrupted(signal).into());
        }
        let before = guard.before()?;
        guard.freeze(args.freeze)?;
        wait_frozen(args, guard, before, deadline, signals).await?;
        let report = guard.verify(root)?;
        let Some(deeds) = guard.checkpointing(before)? else {
            if let Some(root) = root {
                verify::warn_of_foreign(root, &report.foreign);
            }
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(guard.disturbed(&deeds).into());
        }
        for deed in deeds {
            steps.say(format_args!("{deed}, before CHECKPOINTING: trying again"));
        }
    }
}

fn say_violated(names: &str, guarded: &Status) {
    say(format_args!(
        "VIOLATED: {names} was disturbed while it was CHECKPOINTING:"
    ));
    for line in violations(guarded) {
        say(format_args!("  {line}"));
    }
    say(format_args!(
        "do not trust this checkpoint: remove its image and take another"
    ));
}

fn names<'a>(cgroups: impl Iterator<Item = &'a Cgroup>) -> String {
    cgroups
        .map(|cgroup| cgroup.path().display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Says that COMMAND is not there before anything is frozen.
fn find_command(command: &str) -> Result<(), Error> {
    let failed = |errno: Errno| Error::Command {
        command: command.to_owned(),
        source: errno.into(),
    };
    let candidates: Vec<PathBuf> = if command.contains('/') {
        vec![command.into()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(command))
            .collect()
    };
    let mut error = Errno::ENOENT;
    for candidate in candidates.iter().filter(|candidate| candidate.exists()) {
        match access(candidate, AccessFlags::X_OK) {
            Ok(()) if candidate.is_file() => return Ok(()),
            _ => error = Errno::EACCES,
        }
    }
    Err(failed(error))
}

/// `--freeze` must not freeze us.
fn refuse_own(targets: &[Target]) -> Result<(), guard::Error> {
    let own = cgroup::of_pid(i32::try_from(std::process::id()).unwrap_or_default())?;
    for own in &own {
        let above = own.ancestors()?;
        for target in targets.iter().flatten() {
            if target.key() == own.key() || above.iter().any(|above| above.key() == target.key()) {
                return Err(guard::Error::OwnCgroup(target.path().to_owned()));
            }
        }
    }
    Ok(())
}

/// Returns early when somebody disturbs it: then it may never be frozen.
async fn wait_frozen(
    args: &Args,
    guard: &Guard,
    before: Before,
    deadline: Instant,
    signals: &mut Signals,
) -> Result<()> {
    loop {
        let pending = guard.not_frozen()?;
        let Some(cgroup) = pending.first() else {
            return Ok(());
        };
        if guard.is_disturbed(before)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::DidNotFreeze {
                path: cgroup.path().to_owned(),
                after: args.freeze_timeout,
                tasks: cgroup.not_frozen()?,
            }
            .into());
        }
        tokio::select! {
            () = sleep(POLL) => {}
            signal = signals.next() => return Err(Error::Interrupted(signal?.signal).into()),
        }
    }
}

fn spawn(command: &[String]) -> Result<Child> {
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]);
    signals::release_in(&mut child);
    Ok(child.spawn().map_err(|source| Error::Command {
        command: command[0].clone(),
        source,
    })?)
}

/// Waits for COMMAND; passes signals on, prints refusals, minds the time.
async fn supervise(
    args: &Args,
    steps: &Steps,
    guard: &Guard,
    mut reader: Option<Reader>,
    child: &mut Child,
    signals: &mut Signals,
) -> Result<ExitStatus> {
    let pid = Pid::from_raw(child.id().context("COMMAND has a pid")?.cast_signed());
    let far = Duration::from_secs(365 * 24 * 3600);
    let mut deadline = Instant::now() + args.timeout.unwrap_or(far);
    let mut polite = true;
    let mut interrupts = 0;
    let kill_on_violation = args.on_violation == OnViolation::Kill;
    let mut check = interval(CHECK);
    let mut violated = false;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status?;
                if let Some(mut reader) = reader {
                    print(args, guard, &mut reader);
                    // What is left goes with the guard.
                    let _ = reader.close();
                }
                // A COMMAND that ends well when told to stop has not done its work.
                return Ok(if polite { status } else { timed_out(status) });
            }
            () = sleep_until(deadline) => {
                if polite {
                    steps.say(format_args!("time is up: ending {}", args.command[0]));
                    // It may have ended just now.
                    let _ = kill(pid, Signal::SIGTERM);
                    polite = false;
                    deadline = Instant::now() + GRACE;
                } else {
                    guard.kill_holder()?;
                    // Without the guard nobody knows the holder's processes.
                    let _ = child.start_kill();
                    deadline = Instant::now() + GRACE;
                }
            }
            signal = signals.next() => {
                let caught = signal?;
                interrupts += u32::from(caught.signal == Signal::SIGINT);
                if interrupts > 1 {
                    steps.say(format_args!("killing {}", args.command[0]));
                    guard.kill_holder()?;
                    // Without the guard nobody knows the holder's processes.
                    let _ = child.start_kill();
                } else if !caught.from_terminal {
                    // The terminal has sent its own to COMMAND as well.
                    let _ = kill(pid, caught.signal);
                }
            }
            () = ready(&mut reader) => {
                if let Some(reader) = &mut reader {
                    print(args, guard, reader);
                }
            }
            // Events may be lost: the counters are not.
            _ = check.tick() => {}
        }
        if !violated && guard.violations()? > 0 {
            violated = true;
            let status = guard.status()?;
            say(format_args!("VIOLATED: {}", violations(&status).join("; ")));
            if kill_on_violation {
                steps.say(format_args!("killing {}", args.command[0]));
                guard.kill_holder()?;
                // The guard may have been ended meanwhile.
                let _ = child.start_kill();
            }
        }
    }
}

/// Returns when there may be something to read.
async fn ready(reader: &mut Option<Reader>) {
    match reader {
        Some(reader) => reader.ready().await,
        None => std::future::pending().await,
    }
}

/// Prints what was refused by this guard.
fn print(args: &Args, guard: &Guard, reader: &mut Reader) {
    while let Some(event) = reader.next_event() {
        let is_denial = event.kind == EventKind::Denial as u32;
        if args.verbose && is_denial && event.guard == guard.id() {
            let deed = Deed::of_event(&event, Outcome::Refused);
            say(format_args!("refused {deed}"));
        }
    }
}

fn timed_out(status: ExitStatus) -> ExitStatus {
    if status.success() {
        ExitStatus::from_raw(Signal::SIGTERM as i32)
    } else {
        status
    }
}
