//! `freezer-guard status --watch`: a table of all guards that is always new.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Write as _},
    os::fd::AsFd,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use freezer_guard::{
    guard::{Status, chain},
    report::{Line, Row, Style, table},
    words::{escaped, timestamp},
};
use freezer_guard_abi::GuardId;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, raise},
};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::{last, one_line};
use crate::{
    cli::{
        client::{self, list},
        error::Result,
        guarded::signals::Signals,
        say::say,
        terminal::{Keys, Screen},
    },
    daemon::history,
};

#[cfg(test)]
mod tests;

/// How many guards that have ended are shown.
const ENDED: usize = 5;
/// How often the service is asked for a guard that has gone, before what was seen last is shown.
const ASKED: u32 = 5;
/// Says that a look has failed, and that another one follows.
const NOT_REFRESHED: &str = "cannot refresh the table, and will try again";

/// Takes a number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    const SHORTEST: f64 = 0.1;
    const LONGEST: f64 = 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if (SHORTEST..=LONGEST).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!(
            "is no number of seconds from {SHORTEST} to {LONGEST}"
        )),
    }
}

pub(super) fn main(every: Duration, json: bool) -> Result<ExitCode> {
    client::block_on(async {
        let mut view = View::default();
        // An error now is one of the command; later ones are shown and may pass.
        view.take(view.known().look().await?)?;
        let screen = match json {
            true => None,
            false => Screen::find()?,
        };
        match screen {
            Some(screen) => view.show(screen, every).await,
            None => view.print(every, json).await,
        }
    })
}

/// A refresh of the table, as JSON.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct Refresh {
    /// The time (RFC 3339, UTC).
    time: String,
    /// The guards in force.
    guards: Vec<Status>,
    /// The last guards that have ended, the newest first.
    ended: Vec<Status>,
    /// The guards that have ended and that the history does not have yet, as they were last.
    gone: Vec<Status>,
}

/// The contents of the table.
#[derive(Default)]
struct View {
    guards: Vec<Status>,
    /// The last that have ended, the newest first.
    ended: Vec<Status>,
    /// Guards that have gone and of whose end nobody has told, the newest first.
    gone: Vec<Gone>,
    /// When the service has written its history last.
    written: Option<SystemTime>,
    /// Why the last look failed.
    error: Option<String>,
}

/// A guard that was in force, and of whose end nobody has told.
#[derive(Clone)]
struct Gone {
    guard: Status,
    /// How often the history did not have it.
    asked: u32,
}

/// What a look has found.
struct Found {
    guards: Vec<Status>,
    /// The guards that have ended, the oldest first, or `None`: the service was not asked for them.
    history: Result<Option<Vec<Status>>>,
    /// When the service had written them, as far as this user may know it.
    written: Option<SystemTime>,
}

/// What the next look has to know about those before.
struct Known {
    ids: BTreeSet<GuardId>,
    /// Whether the history still lacks a guard that has gone.
    is_awaited: bool,
    written: Option<SystemTime>,
}

impl Known {
    /// Looks at the guards once more.
    async fn look(self) -> Result<Found> {
        let guards = list().await?;
        // The service writes it when guards have ended.
        let written = fs::metadata(history::LAST).and_then(|file| file.modified());
        let written = written.ok();
        let history = match self.asks_for_history(&guards, written) {
            true => last().await.map(Some),
            false => Ok(None),
        };
        Ok(Found {
            guards,
            history,
            written,
        })
    }

    async fn look_at(self, due: Instant) -> Result<Found> {
        sleep_until(due).await;
        self.look().await
    }

    fn asks_for_history(&self, guards: &[Status], written: Option<SystemTime>) -> bool {
        let is_there = |id: &GuardId| guards.iter().any(|guard| guard.id == *id);
        // A member of the group may not look at the file.
        let is_old = written.is_some() && written == self.written;
        self.is_awaited || !is_old || !self.ids.iter().all(is_there)
    }
}

impl View {
    fn known(&self) -> Known {
        Known {
            ids: self.guards.iter().map(|guard| guard.id).collect(),
            is_awaited: self.gone.iter().any(|gone| gone.asked < ASKED),
            written: self.written,
        }
    }

    /// Takes over what a look has found.
    fn take(&mut self, found: Found) -> Result<()> {
        let ids: BTreeSet<GuardId> = found.guards.iter().map(|guard| guard.id).collect();
        for mut guard in std::mem::replace(&mut self.guards, found.guards) {
            if !ids.contains(&guard.id) {
                guard.holder_pids.clear();
                self.gone.insert(0, Gone { guard, asked: 0 });
            }
        }
        if let Some(history) = found.history? {
            // More guards may have ended since the last look than are shown.
            let ended: BTreeSet<GuardId> = history.iter().map(|guard| guard.id).collect();
            self.gone.retain(|gone| !ended.contains(&gone.guard.id));
            self.gone.iter_mut().for_each(|gone| gone.asked += 1);
            self.ended = history.into_iter().rev().take(ENDED).collect();
            self.written = found.written;
        }
        self.gone.truncate(ENDED);
        Ok(())
    }

    /// Takes over what a look has found, or keeps the error of the look.
    fn take_or_keep(&mut self, found: Result<Found>) {
        let taken = found.and_then(|found| self.take(found));
        self.error = taken.err().map(|error| chain(&error));
    }

    /// The guards that have ended, the newest first, and whether they are as they were seen last.
    fn ended(&self) -> Vec<(&Status, bool)> {
        let gone = self.gone.iter().map(|gone| (&gone.guard, true));
        let known = self.ended.iter().map(|guard| (guard, false));
        let mut ended: Vec<_> = gone.chain(known).collect();
        ended.sort_by(|one, other| other.0.begun.cmp(&one.0.begun));
        ended.truncate(ENDED);
        ended
    }

    fn lines(&self, width: Option<usize>) -> Vec<Line> {
        let row = |guard, has_ended, is_last_seen| Row {
            guard,
            holder: holder(guard),
            has_ended,
            is_last_seen,
        };
        let ended = self.ended();
        let rows = self.guards.iter().map(|guard| row(guard, false, false));
        let rows: Vec<_> = rows.collect();
        let rows_ended = ended.iter().map(|(guard, gone)| row(guard, true, *gone));
        let rows_ended: Vec<_> = rows_ended.collect();
        let mut lines = match rows.is_empty() {
            true => vec![plain("no cgroup is guarded")],
            false => table(&rows, width),
        };
        if !rows_ended.is_empty() {
            lines.extend([plain(""), plain("The last guards that have ended:")]);
            lines.extend(table(&rows_ended, width));
        }
        if ended.iter().any(|(_, is_last_seen)| *is_last_seen) {
            lines.push(plain(
                "~ as it was seen last: only the service keeps how a guard ended",
            ));
        }
        lines
    }

    /// The lines of the table without its times. Without a terminal, a change of these prints it again.
    fn without_times(&self) -> Vec<Line> {
        let still = |guard: &Status| Status {
            held_seconds: 0.0,
            ..guard.clone()
        };
        let view = Self {
            guards: self.guards.iter().map(still).collect(),
            ended: self.ended.clone(),
            gone: self.gone.clone(),
            ..Self::default()
        };
        view.lines(None)
    }

    fn json(&self, now: &str) -> Result<String> {
        one_line(Refresh {
            time: now.to_owned(),
            guards: self.guards.clone(),
            ended: self.ended.clone(),
            gone: self.gone.iter().map(|gone| gone.guard.clone()).collect(),
        })
    }

    /// Shows it on a terminal until the user has seen enough.
    async fn show(mut self, mut screen: Screen, every: Duration) -> Result<ExitCode> {
        // From here on no signal ends the process before the terminal is restored.
        let mut signals = Signals::catch_for_view()?;
        screen.enter()?;
        let mut keys = screen.keys()?;
        let mut due = Instant::now() + every;
        let mut look = Box::pin(self.known().look_at(due));
        // An error: the terminal has gone.
        while screen.draw(&self.screenful(&screen)).is_ok() {
            tokio::select! {
                caught = signals.next() => match caught?.signal {
                    Signal::SIGTSTP => {
                        screen.leave()?;
                        raise(Signal::SIGSTOP)?;
                        // Somebody lets us go on.
                        screen.enter()?;
                    }
                    signal if ends(signal) => break,
                    _ => {}
                },
                key = pressed(&mut keys) => match key? {
                    Some(b'q' | b'Q') => break,
                    Some(_) => {}
                    None => keys = None,
                },
                // The service may be slow: keys and signals do not wait for it.
                found = &mut look => {
                    self.take_or_keep(found);
                    due = Instant::now().max(due + every);
                    look = Box::pin(self.known().look_at(due));
                }
            }
        }
        screen.leave()?;
        Ok(ExitCode::SUCCESS)
    }

    /// The lines for the terminal as it is now.
    fn screenful(&self, screen: &Screen) -> Vec<Line> {
        let (width, height) = screen.size();
        let now = timestamp(SystemTime::now());
        let count = self.guards.len();
        let way_out = match screen.has_keys() {
            true => "q: quit",
            false => "Ctrl-C: quit",
        };
        let mut lines = vec![
            plain(&format!("{now}  guards in force: {count}  ({way_out})")),
            plain(""),
        ];
        lines.extend(self.lines(Some(width)));
        if let Some(error) = &self.error {
            let text = format!("{NOT_REFRESHED}: {}", escaped(error));
            let style = Style::Alarm;
            lines.insert(1, Line { text, style });
        }
        if lines.len() > height {
            let left = lines.len() - height + 1;
            lines.truncate(height - 1);
            lines.push(plain(&format!("… {left} more lines")));
        }
        lines
    }

    /// Prints it as long as the output has a reader. There is no terminal to restore, so signals keep
    /// their default action: they end the process also while it waits for its reader or the service.
    async fn print(mut self, every: Duration, json: bool) -> Result<ExitCode> {
        let mut printed = None;
        loop {
            let due = Instant::now() + every;
            let seen = self.without_times();
            let text = match json {
                // The guards are those of an earlier look.
                _ if self.error.is_some() => String::new(),
                true => self.json(&timestamp(SystemTime::now()))?,
                false if printed.as_ref() == Some(&seen) => String::new(),
                false => {
                    let now = timestamp(SystemTime::now());
                    let lines = self.lines(None).into_iter();
                    let text: String = lines.map(|line| line.text + "\n").collect();
                    format!("{now}\n{text}\n")
                }
            };
            printed = Some(seen);
            let mut stdout = std::io::stdout();
            let written = stdout.write_all(text.as_bytes());
            match written.and_then(|()| stdout.flush()) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                written => written?,
            }
            if !is_read_until(&stdout, due)? {
                break;
            }
            let before = self.error.take();
            self.take_or_keep(self.known().look().await);
            if let Some(error) = self.error.as_ref()
                && before.as_ref() != Some(error)
            {
                say(format_args!("{NOT_REFRESHED}: {error}"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether a signal ends the view.
fn ends(signal: Signal) -> bool {
    !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGWINCH)
}

/// Waits until `due`. Returns `false` as soon as this output has no reader any more.
fn is_read_until(output: &impl AsFd, due: Instant) -> nix::Result<bool> {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        // The longest interval is a day.
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // The kernel reports errors without being asked.
        let mut polled = [PollFd::new(output.as_fd(), PollFlags::empty())];
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => {}
            found => return Ok(found? == 0),
        }
    }
}

async fn pressed(keys: &mut Option<Keys>) -> std::io::Result<Option<u8>> {
    match keys {
        Some(keys) => keys.next().await,
        None => std::future::pending().await,
    }
}

fn plain(text: &str) -> Line {
    Line {
        text: text.to_owned(),
        style: Style::Plain,
    }
}

/// The checkpointer, which is not freezer-guard itself if there is another: its pid and name, and
/// how many more processes there are.
fn holder(guard: &Status) -> String {
    /// The first ones are older than their children.
    const LOOKED_AT: usize = 8;
    let name = |pid: &u32| {
        let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let comm = String::from_utf8_lossy(&comm);
        (*pid, comm.trim_end_matches('\n').to_owned())
    };
    let named: Vec<_> = guard.holder_pids.iter().take(LOOKED_AT).map(name).collect();
    let other = named.iter().find(|(_, comm)| comm != "freezer-guard");
    match (other.or(named.first()), guard.holder_pids.len()) {
        (None, _) => "-".to_owned(),
        (Some((pid, comm)), 1) => format!("{pid} {comm}"),
        (Some((pid, comm)), count) => format!("{pid} {comm} +{}", count - 1),
    }
}
