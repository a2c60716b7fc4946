//! A command that runs while something is guarded: what `run`, `checkpoint` and
//! `restore` have in common.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt as _, net::UnixListener},
    path::PathBuf,
    process::ExitStatus,
};

use freezer_guard::{
    guard::{self, Guard, Preparation, Requirements, Status, Target, describe_level, refusals},
    kernel::{self, Reader},
    words::join,
};
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::{
    client,
    error::{Error, Result},
    exit::{self, Code},
    say::{say, say_help, say_verifier_log},
    verify,
};

mod children;
mod hold;
mod meeting;
mod options;
pub(super) mod signals;
mod supervise;
mod wait;

use children::Children;
use hold::ActiveGuard;
pub(super) use meeting::Meeting;
pub(super) use options::{OnViolation, Options};
use signals::Signals;
use wait::Waiting;

/// What is to be done, and under which guard.
pub(super) struct GuardedCommand<'a> {
    pub(super) options: &'a Options,
    /// What is guarded.
    pub(super) targets: Vec<Target>,
    /// Whether it was named; otherwise it is what the process is in.
    pub(super) named: bool,
    /// The roots of the trees that have to be in it.
    pub(super) roots: Vec<i32>,
    /// Freeze it first, and thaw it at the end.
    pub(super) freeze: bool,
    /// Thaw it when it is CHECKPOINTING: COMMAND does not.
    pub(super) thaw: bool,
    /// What COMMAND leaves running is what it was to do.
    pub(super) restores: bool,
    /// COMMAND, or what each tree of a checkpoint needs; these run at the same time.
    pub(super) commands: &'a [Vec<OsString>],
    /// Where the action scripts of several wait for each other: see [`Meeting::call`].
    pub(super) meeting: Option<UnixListener>,
    /// Called every second while COMMAND runs.
    pub(super) watch: Option<&'a mut dyn FnMut()>,
}

impl GuardedCommand<'_> {
    /// The first word of COMMAND.
    fn name(&self) -> std::ffi::os_str::Display<'_> {
        self.commands[0][0].display()
    }
}

/// What came of it.
pub(super) struct Outcome {
    /// That of the first process that failed, or 0.
    pub(super) status: ExitStatus,
    /// In the order of the commands.
    pub(super) statuses: Vec<ExitStatus>,
    /// Whether the meeting has let all of them end their trees.
    pub(super) is_decided: bool,
    /// When COMMAND was started, and when it had ended, on `CLOCK_BOOTTIME`, ns. No process sets that
    /// clock.
    pub(super) started_ns: u64,
    pub(super) ended_ns: u64,
    /// What was guarded, in words.
    pub(super) names: String,
    /// What the guard did; `None`: somebody has ended it before.
    pub(super) guard: Option<Status>,
}

impl Outcome {
    /// Its exit code, or 128 and the signal.
    pub(super) fn code(&self) -> Code {
        code_of(self.status)
    }

    /// Whether a violation is only to be told. The end of the guard by another process is no excuse.
    pub(super) fn is_excused(&self, options: &Options) -> bool {
        options.on_violation == OnViolation::Warn && self.guard.is_some()
    }

    /// Whether the guard held to the end, and says what got through if not.
    pub(super) fn held(&self) -> bool {
        let names = &self.names;
        let Some(guard) = &self.guard else {
            say(format_args!(
                "another process ended the guard of {names} before COMMAND had ended"
            ));
            say_help(exit::VIOLATED);
            return false;
        };
        if guard.violation_count() == 0 {
            return true;
        }
        say(format_args!(
            "VIOLATED: {names} was disturbed while it was CHECKPOINTING:"
        ));
        for line in guard::violations(guard) {
            say(format_args!("  {line}"));
        }
        say_help(exit::VIOLATED);
        false
    }
}

/// The exit code of a process, or 128 and the signal.
pub(super) fn code_of(status: ExitStatus) -> Code {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code();
    let code = code.or_else(|| Some(128 + status.signal()?));
    Code(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Runs COMMAND under a guard.
///
/// # Errors
/// When there can be no such guard, or COMMAND cannot be started.
pub(super) fn run(work: GuardedCommand<'_>) -> Result<Outcome> {
    find_command(&work.commands[0][0])?;
    if work.freeze {
        guard::refuse_containing(
            &work.targets,
            &[(std::process::id(), "freezer-guard itself")],
        )?;
    }
    // One thread: it becomes the first member of the holder.
    client::block_on(begin(work))
}

async fn begin(mut work: GuardedCommand<'_>) -> Result<Outcome> {
    let mut signals = Signals::catch_stops_too()?;
    let mut waiting = Waiting::of(work.options);
    loop {
        match try_begin(&mut work, &mut signals).await {
            Ok((hold, names, reader)) => return hold_on(work, hold, names, reader, signals).await,
            Err(error) => {
                waiting
                    .wait_or_fail(error, work.options, &mut signals)
                    .await?;
            }
        }
    }
}

/// A guard that is CHECKPOINTING, the names of what it guards, and the reader of what it refuses.
type Begun = (ActiveGuard, String, Option<Reader>);

async fn try_begin(work: &mut GuardedCommand<'_>, signals: &mut Signals) -> Result<Begun> {
    let Err(denied) = kernel::may_use_bpf() else {
        return begin_here(work, signals);
    };
    let Some(daemon) = client::connect().await? else {
        return Err(denied.into());
    };
    let mut hold = tokio::select! {
        hold = ActiveGuard::by_service(daemon, work) => hold?,
        // The service sees that we have gone.
        signal = signals.next_end() => return Err(Error::Interrupted(signal?)),
    };
    let names = say_guarding(work.options, &hold.status().await?);
    Ok((hold, names, None))
}

/// A guard of our own.
fn begin_here(work: &mut GuardedCommand<'_>, signals: &mut Signals) -> Result<Begun> {
    let options = work.options;
    let wanted = Requirements {
        allowed: options.allow.clone(),
        require: Some(options.required()?),
        at_most: options.level,
        owner: None,
    };
    let mut guard = Guard::begin(work.targets.clone(), &wanted)?;
    let names = say_guarding(options, &guard.status()?);
    for reason in guard.weak_because() {
        options.step(format_args!(
            "reduced enforcement: {}",
            guard::chain(reason)
        ));
        if options.verbose {
            say_verifier_log(reason);
        }
    }
    let reader = match options.verbose || options.on_violation == OnViolation::Kill {
        true => Some(guard::follow()?.0),
        false => None,
    };
    prepare(work, &mut guard, signals)?;
    Ok((ActiveGuard::here(guard), names, reader))
}

/// Returns the names of what is guarded.
fn say_guarding(options: &Options, guard: &Status) -> String {
    let names = join(&guard.cgroups, ", ");
    let level = describe_level(guard);
    options.step(format_args!("guarding {names} ({level})"));
    names
}

fn say_running(options: &Options, names: &str, commands: &[Vec<OsString>]) {
    for command in commands {
        options.step(format_args!(
            "{names}: CHECKPOINTING; running {}",
            command.join(OsStr::new(" ")).display()
        ));
    }
}

/// Runs COMMAND while the guard is held, and ends it.
async fn hold_on(
    mut work: GuardedCommand<'_>,
    mut hold: ActiveGuard,
    names: String,
    reader: Option<Reader>,
    mut signals: Signals,
) -> Result<Outcome> {
    let (options, commands) = (work.options, work.commands);
    if let Some(signal) = signals.pending()? {
        return Err(Error::Interrupted(signal));
    }
    say_running(options, &names, commands);
    if work.thaw {
        guard::thaw(hold.cgroups())?;
    }

    let started_ns = guard::now();
    let meeting = work.meeting.take();
    let meeting = meeting.map(|meeting| Meeting::of(meeting, commands.len()));
    let mut children = Children::start(commands, meeting.transpose()?, &signals)?;
    let supervised =
        supervise::supervise(&mut work, &mut hold, reader, &mut children, &mut signals);
    let status = match supervised.await {
        Ok(status) => status,
        Err(error) => {
            // Without us nobody minds COMMAND, and without COMMAND no guard is needed.
            let _ = hold.kill_holder().await;
            children.start_kill();
            return Err(error);
        }
    };
    let ended_ns = guard::now();
    options.step(format_args!("{} ended with {status}", work.name()));
    if !work.restores {
        let stragglers = hold.other_pids().await?;
        if !stragglers.is_empty() {
            options.step(format_args!(
                "these processes outlive COMMAND and are no longer holders of the guard: pid {stragglers:?}"
            ));
        }
    }
    let guard = hold.end().await?;
    if let Some(guard) = &guard {
        options.step(format_args!(
            "held {names} for {:.1} s, {}",
            guard.held_seconds,
            refusals(guard)
        ));
    }
    Ok(Outcome {
        status,
        is_decided: children.is_decided(),
        statuses: children.into_statuses(),
        started_ns,
        ended_ns,
        names,
        guard,
    })
}

/// From the mark to CHECKPOINTING.
fn prepare(work: &GuardedCommand<'_>, guard: &mut Guard, signals: &mut Signals) -> Result<()> {
    let how = Preparation {
        freeze: work.freeze,
        timeout: work.options.freeze_timeout,
        roots: work.roots.clone(),
    };
    let report = guard.prepare(&how, |incidents| -> Result<()> {
        for incident in incidents {
            work.options.step(format_args!(
                "{incident}, before CHECKPOINTING: freezing and verifying again"
            ));
        }
        match signals.pending()? {
            Some(signal) => Err(Error::Interrupted(signal)),
            None => Ok(()),
        }
    })?;
    for other in guard.around() {
        let other = other.display();
        work.options.step(format_args!(
            "its tasks are also in {other}: the guard protects that cgroup from a freeze too"
        ));
    }
    verify::warn(&how.roots, &report);
    Ok(())
}

/// Says that COMMAND is not there before anything is frozen.
fn find_command(command: &OsStr) -> Result<(), Error> {
    let failed = |errno: Errno| Error::Command {
        command: command.display().to_string(),
        source: errno.into(),
    };
    let candidates: Vec<PathBuf> = if command.as_bytes().contains(&b'/') {
        vec![command.into()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|dir| dir.join(command))
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
