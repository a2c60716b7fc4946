//! While COMMAND runs: signals are passed on, refusals printed, the time is minded.

use std::{process::ExitStatus, time::Duration};

use freezer_guard::{
    guard::{Incident, Outcome, violations},
    kernel::Reader,
};
use freezer_guard_abi::{EventKind, GuardId};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::{
    ActiveGuard, Children, GuardedCommand, Options, Signals, children::ended_by,
    options::OnViolation,
};
use crate::cli::error::Result;
use crate::cli::say::say;

/// How long a process may take to end after a polite signal.
const GRACE: Duration = Duration::from_secs(5);
/// In place of a time-out.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often the counters are looked at while COMMAND runs.
const CHECK: Duration = Duration::from_secs(1);

/// Waits for COMMAND; passes signals on, prints refusals, minds the time.
pub(super) async fn supervise(
    work: &mut GuardedCommand<'_>,
    hold: &mut ActiveGuard,
    mut reader: Option<Reader>,
    children: &mut Children,
    signals: &mut Signals,
) -> Result<ExitStatus> {
    let options = work.options;
    let mut deadline = Instant::now() + options.timeout.unwrap_or(FAR);
    let mut polite = true;
    let mut interrupts = 0;
    let mut check = interval(CHECK);
    let mut violated = false;
    loop {
        tokio::select! {
            status = children.wait() => {
                print_rest(options, hold, reader);
                // A COMMAND that ends well when told to stop has not done its work.
                return Ok(if polite || children.is_decided() {
                    status?
                } else {
                    timed_out(status?)
                });
            }
            () = sleep_until(deadline) => {
                let more = time_is_up(work, hold, children, &mut polite).await?;
                deadline = Instant::now() + more;
            }
            signal = signals.next() => {
                let caught = signal?;
                interrupts += u32::from(caught.signal == Signal::SIGINT);
                if caught.signal == Signal::SIGTSTP {
                    carry_on(work, hold, children).await;
                } else if interrupts > 1 {
                    say_killing(work);
                    kill_all(hold, children).await?;
                } else if !caught.from_terminal && !children.is_decided() {
                    // The terminal has sent its own to COMMAND as well.
                    children.signal(caught.signal);
                }
            }
            () = ready(&mut reader) => print_all(options, hold, reader.as_mut()),
            // Events may be lost: the counters are not.
            _ = check.tick() => {
                hold.check().await?;
                if let Some(watch) = &mut work.watch {
                    watch();
                }
            }
        }
        if !violated && hold.violations()? > 0 {
            violated = true;
            say_violated(work, hold, children).await?;
        }
    }
}

/// Ends COMMAND, the first time politely. Returns when to look again.
async fn time_is_up(
    work: &GuardedCommand<'_>,
    hold: &mut ActiveGuard,
    children: &mut Children,
    polite: &mut bool,
) -> Result<Duration> {
    if children.is_decided() {
        work.options.step(format_args!(
            "--timeout has passed, but the images are complete: waiting until CRIU has ended"
        ));
        return Ok(FAR);
    }
    if *polite {
        say_that_time_is_up(work, hold);
        children.signal(Signal::SIGTERM);
        *polite = false;
    } else {
        kill_all(hold, children).await?;
    }
    Ok(GRACE)
}

fn print_all(options: &Options, hold: &ActiveGuard, reader: Option<&mut Reader>) {
    if let Some(reader) = reader {
        print(options, hold.id(), reader);
    }
}

fn print_rest(options: &Options, hold: &ActiveGuard, reader: Option<Reader>) {
    if let Some(mut reader) = reader {
        print(options, hold.id(), &mut reader);
        // Its pin goes with the guard otherwise.
        let _ = reader.close();
    }
}

/// Reports what got through, and ends COMMAND if that is wanted.
async fn say_violated(
    work: &GuardedCommand<'_>,
    hold: &mut ActiveGuard,
    children: &mut Children,
) -> Result<()> {
    let status = hold.status().await?;
    say(format_args!("VIOLATED: {}", violations(&status).join("; ")));
    if work.options.on_violation == OnViolation::Kill && !children.is_decided() {
        say_killing(work);
        kill_all(hold, children).await?;
    }
    Ok(())
}

fn say_killing(work: &GuardedCommand<'_>) {
    work.options.step(format_args!("killing {}", work.name()));
}

/// Kills the holder's processes, and COMMAND by itself: the guard may have been ended, and
/// without it the other processes are not known.
async fn kill_all(hold: &mut ActiveGuard, children: &mut Children) -> Result<()> {
    hold.kill_holder().await?;
    children.start_kill();
    Ok(())
}

/// The terminal has stopped COMMAND with Ctrl-Z. Its tasks would stay frozen for as long as it is.
async fn carry_on(work: &GuardedCommand<'_>, hold: &mut ActiveGuard, children: &Children) {
    work.options.step(format_args!(
        "Ctrl-Z is ignored, since it would leave the tasks frozen: {} goes on; Ctrl-C ends it",
        work.name()
    ));
    children.signal(Signal::SIGCONT);
    // The service may not answer; then the others stay stopped.
    if let Ok(Ok(pids)) = timeout(CHECK, hold.other_pids()).await {
        for pid in pids {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT);
        }
    }
}

fn say_that_time_is_up(work: &GuardedCommand<'_>, hold: &ActiveGuard) {
    let options = work.options;
    options.step(format_args!("--timeout has passed: ending {}", work.name()));
    for cgroup in hold.cgroups() {
        // A cgroup that has gone needs no advice.
        if !work.thaw && cgroup.is_self_frozen().unwrap_or(false) {
            options.step(format_args!(
                "{} is still frozen: add --thaw if the checkpointer does not thaw it by itself, \
                 since it then waits for ever",
                cgroup.path().display()
            ));
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
fn print(options: &Options, guard: GuardId, reader: &mut Reader) {
    while let Some(event) = reader.next_event() {
        let is_denial = event.kind == EventKind::Denial as u32;
        if options.verbose && is_denial && event.guard == guard {
            let incident = Incident::of_event(&event, Outcome::Refused);
            say(format_args!("refused {incident}"));
        }
    }
}

fn timed_out(status: ExitStatus) -> ExitStatus {
    if status.success() {
        ended_by(Signal::SIGTERM)
    } else {
        status
    }
}
