//! `freezer-guard events`: what happens to guarded cgroups, as it happens.

use std::{collections::BTreeMap, io::Write as _, process::ExitCode};

use anyhow::Result;
use freezer_guard::guard::{self, Deed, Outcome, Status};
use freezer_guard_ebpf::{Event, EventKind, GuardId};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{run::signals::Signals, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Go on, with what happens from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(events(args))
}

async fn events(args: &Args) -> Result<ExitCode> {
    let mut printer = Printer {
        json: args.json,
        cgroups: BTreeMap::new(),
    };
    if !args.follow {
        let guards = guard::list()?;
        if guards.is_empty() {
            say(format_args!("no cgroup is guarded; --follow waits for one"));
        }
        printer.print(&printer.so_far(&guards));
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::catch()?;
    let (mut reader, guards) = guard::follow()?;
    for guard in &guards {
        let paths = guard.cgroups.iter().map(|path| path.display().to_string());
        printer.cgroups.insert(guard.id, paths.collect());
    }
    let mut listens = printer.print(&printer.so_far(&guards));
    while listens {
        tokio::select! {
            signal = signals.next() => {
                let signal = signal?.signal;
                if matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT) {
                    break;
                }
            }
            () = reader.ready() => {
                let mut lines = Vec::new();
                while let Some(event) = reader.next_event() {
                    lines.push(printer.line(&event));
                }
                let lost = reader.lost();
                if lost > 0 {
                    lines.push(Line::lost(lost));
                }
                listens = printer.print(&lines);
            }
        }
    }
    reader.close()?;
    Ok(ExitCode::SUCCESS)
}

/// One event, for people and for programs.
struct Line {
    text: String,
    json: Value,
}

impl Line {
    fn new(time: &str, event: &str, guard: GuardId, about: &str) -> Self {
        Self {
            text: format!("{time} {event}: {about}"),
            json: json!({ "time": time, "event": event, "guard": guard }),
        }
    }

    fn of_deed(deed: &Deed, guard: GuardId, outcome: Outcome) -> Self {
        let event = match outcome {
            Outcome::Refused => "denial",
            Outcome::Done if deed.checkpointing => "violation",
            // Before CHECKPOINTING: mended, or the guard does not get there.
            Outcome::Done => "disturbance",
        };
        let mut line = Self::new(&deed.last, event, guard, &deed.to_string());
        line.json["by"] = json!(deed);
        line
    }

    fn lost(count: u64) -> Self {
        Self {
            text: format!(
                "{count} events lost: they came too fast (the counts in `status` are complete)"
            ),
            json: json!({ "event": "lost", "count": count }),
        }
    }

    fn with_cgroups(mut self, cgroups: &[String]) -> Self {
        self.json["cgroups"] = json!(cgroups);
        self
    }
}

/// Prints, and remembers which cgroups a guard has.
struct Printer {
    json: bool,
    cgroups: BTreeMap<GuardId, Vec<String>>,
}

impl Printer {
    /// What the guards in force have seen before we came. What was done several
    /// times is told once, with its number and its last time.
    fn so_far(&self, guards: &[Status]) -> Vec<Line> {
        let mut lines = Vec::new();
        for guard in guards {
            let paths: Vec<_> = guard
                .cgroups
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            let about = paths.join(", ");
            lines.push(Line::new(&guard.begun, "begun", guard.id, &about).with_cgroups(&paths));
            if let Some(time) = &guard.checkpointing {
                lines.push(Line::new(time, "checkpointing", guard.id, &about).with_cgroups(&paths));
            }
            let refused = guard.intruders.iter().map(|deed| (deed, Outcome::Refused));
            let done = guard.violators.iter().map(|deed| (deed, Outcome::Done));
            for (deed, outcome) in refused.chain(done) {
                lines.push(Line::of_deed(deed, guard.id, outcome).with_cgroups(&paths));
            }
        }
        lines.sort_by(|one, other| one.text.cmp(&other.text));
        lines
    }

    fn line(&mut self, event: &Event) -> Line {
        let id = event.guard;
        let time = guard::wall_clock(event.time_ns);
        let outcome = match EventKind::ALL.get(event.kind as usize) {
            Some(EventKind::Denial) => Outcome::Refused,
            Some(EventKind::Disturbance) => Outcome::Done,
            Some(EventKind::Begun) => {
                // One comes for each target.
                let path = guard::path(event.cgroup);
                let known = self.cgroups.entry(id).or_default();
                known.push(path.clone());
                return Line::new(&time, "begun", id, &path).with_cgroups(&[path]);
            }
            Some(EventKind::Checkpointing) => {
                let cgroups = self.cgroups.get(&id).cloned().unwrap_or_default();
                let about = cgroups.join(", ");
                return Line::new(&time, "checkpointing", id, &about).with_cgroups(&cgroups);
            }
            Some(EventKind::Ended) => {
                let cgroups = self.cgroups.remove(&id).unwrap_or_default();
                let about = cgroups.join(", ");
                return Line::new(&time, "ended", id, &about).with_cgroups(&cgroups);
            }
            None => return Line::new(&time, "unknown", id, "an event of another version"),
        };
        let cgroups = self.cgroups.get(&id).cloned().unwrap_or_default();
        Line::of_deed(&Deed::of_event(event, outcome), id, outcome).with_cgroups(&cgroups)
    }

    /// `false` when nobody listens any more.
    fn print(&self, lines: &[Line]) -> bool {
        let mut text = String::new();
        for line in lines {
            match self.json {
                true => text += &line.json.to_string(),
                false => text += &line.text,
            }
            text.push('\n');
        }
        let mut stdout = std::io::stdout();
        stdout.write_all(text.as_bytes()).is_ok() && stdout.flush().is_ok()
    }
}
