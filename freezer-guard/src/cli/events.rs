//! `freezer-guard events`: what happens to guarded cgroups, as it happens.

use std::{io::Write as _, pin::pin, process::ExitCode};

use freezer_guard::{
    guard::{self, Event, EventDecoder, Status},
    json::Versioned,
    words::escaped,
};
use nix::sys::signal::Signal;
use tokio_stream::StreamExt as _;
use zlink::tokio::unix;

use super::{
    client::{self, Daemon as _, answer},
    error::{Error, Result},
    guarded::signals::Signals,
    say::say,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Also print new events as they happen, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Print each event as one JSON object on a line
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    client::block_on(async {
        match client::connect().await? {
            Some(daemon) => from_daemon(args, daemon).await,
            None => from_kernel(args).await,
        }
    })
}

async fn from_daemon(args: &Args, mut daemon: unix::Connection) -> Result<ExitCode> {
    if !args.follow {
        let guards = answer(daemon.list()).await?.guards;
        so_far(args, &guards)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::catch()?;
    let no_answer = || Error::no_answer("follow the events of the service");
    let mut stream = pin!(daemon.monitor().await.map_err(no_answer())?);
    loop {
        tokio::select! {
            signal = signals.next() => if ends(signal?.signal) { break },
            next = stream.next() => {
                let Some(reply) = next else {
                    return Err(Error::Unexpected(
                        "the daemon has ended: what happens now is not seen here".to_owned(),
                    ));
                };
                if !print(args, &reply.map_err(no_answer())??.events)? {
                    break;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the guards in force have seen.
fn so_far(args: &Args, guards: &[Status]) -> Result<()> {
    if guards.is_empty() {
        say(format_args!("no cgroup is guarded; --follow waits for one"));
    }
    print(args, &EventDecoder::default().so_far(guards)).map(drop)
}

async fn from_kernel(args: &Args) -> Result<ExitCode> {
    if !args.follow {
        so_far(args, &guard::list()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut decoder = EventDecoder::default();
    let mut signals = Signals::catch()?;
    let (mut reader, guards) = guard::follow()?;
    let mut listens = print(args, &decoder.so_far(&guards))?;
    while listens {
        tokio::select! {
            signal = signals.next() => if ends(signal?.signal) { break },
            () = reader.ready() => {
                let mut events = Vec::new();
                while let Some(raw) = reader.next_event() {
                    events.push(decoder.decode(&raw));
                }
                let lost = reader.lost();
                if lost > 0 {
                    events.push(Event::lost(lost));
                }
                listens = print(args, &events)?;
            }
        }
    }
    reader.close()?;
    Ok(ExitCode::SUCCESS)
}

fn ends(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT
    )
}

/// `false` when nobody listens any more.
fn print(args: &Args, events: &[Event]) -> Result<bool> {
    let mut text = String::new();
    for event in events {
        match args.json {
            true => text += &serde_json::to_string(&Versioned::new(event))?,
            false => text += &escaped(&event.to_string()),
        }
        text.push('\n');
    }
    let mut stdout = std::io::stdout();
    Ok(stdout.write_all(text.as_bytes()).is_ok() && stdout.flush().is_ok())
}
