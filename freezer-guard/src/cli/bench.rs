//! `freezer-guard bench`: what do guards cost this host?

use std::{io::Write as _, process::ExitCode};

use anyhow::Result;
use freezer_guard::bench::{self, Found, Plan, Report, Row};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::say::say;

/// Measures with nothing of freezer-guard loaded, with programs that do nothing where
/// a guard has programs, and with guards in force.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// How many guards to hold while it measures
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 100])]
    guards: Vec<usize>,
    /// How many tasks to put into the cgroup that `run` guards
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 1000])]
    tasks: Vec<usize>,
    /// Dump processes with so much memory too, MiB, with criu and into $TMPDIR
    #[arg(long, value_name = "MIB", value_delimiter = ',')]
    dumps: Vec<usize>,
    /// Only what has a name that contains this, or one of these
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    only: Vec<String>,
    /// Bring this about for the cgroups below PATH, until standard input ends
    #[arg(long, num_args = 2, value_names = ["PART", "PATH"], hide = true)]
    hold: Option<Vec<String>>,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    if let Some([part, top]) = args.hold.as_deref() {
        bench::hold(part.parse().map_err(anyhow::Error::msg)?, top.as_ref())?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = Plan {
        guards: args.guards.clone(),
        tasks: args.tasks.clone(),
        dumps: args.dumps.clone(),
        only: args.only.clone(),
    };
    // What it has made has to go again. (The process that holds guards inherits this: it
    // ends when we do.)
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut signal = None;
    let report = bench::measure(&plan, &mut |what| {
        say(format_args!("measuring {what}"));
        signal = signals.read_signal().ok().flatten();
        signal.is_none()
    });
    if let (Err(bench::Error::Stopped), Some(signal)) = (&report, signal) {
        return Ok(ExitCode::from(128 + signal.ssi_signo as u8));
    }
    let report = report?;
    let text = match args.json {
        true => serde_json::to_string(&report)? + "\n",
        false => table(&report.rows) + &more(&report),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What the life of guards takes, and memory.
fn more(report: &Report) -> String {
    let mut text = String::new();
    for life in &report.lives {
        text += &format!(
            "{} run, {} tasks, {}: begin {:.1} ms, end {:.1} ms\n",
            life.hierarchy,
            life.tasks,
            found(life.found),
            life.begin / 1e6,
            life.end / 1e6,
        );
    }
    for scale in &report.scale {
        text += &format!(
            "{} {} guards, {} clients at once: {:.0} begun a second, {:.0} ended a second\n",
            scale.hierarchy,
            scale.guards,
            scale.clients,
            1e9 / scale.begin,
            1e9 / scale.end,
        );
    }
    for memory in &report.memory {
        text += &format!(
            "{} {} guards: service {} KiB, maps {} KiB, programs {} KiB\n",
            memory.hierarchy,
            memory.guards,
            memory.service / 1024,
            memory.kernel.maps / 1024,
            memory.kernel.programs / 1024,
        );
    }
    for dump in &report.dumps {
        text += &format!(
            "{} dump of {} MiB, {}: {:.1} ms, guarded {:.1} ms ({:.3})\n",
            dump.hierarchy,
            dump.mib,
            found(dump.found),
            dump.bare / 1e6,
            dump.guarded / 1e6,
            dump.guarded / dump.bare,
        );
    }
    text
}

fn found(found: Found) -> &'static str {
    match found {
        Found::Nothing => "nothing is loaded",
        Found::Programs => "programs are loaded",
        Found::Service => "with the service",
    }
}

/// ns for each operation, and how many times what it takes without us.
fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let Some(first) = rows.first() else {
        return text;
    };
    text += &format!("{:<32}", "ns");
    for figure in &first.figures {
        text += &format!("{:>18}", figure.condition);
    }
    text.push('\n');
    for row in rows {
        text += &format!("{:<3} {:<28}", row.hierarchy, row.operation);
        let bare = row
            .figures
            .first()
            .map_or(0.0, |figure| figure.sample.median);
        for figure in &row.figures {
            let median = figure.sample.median;
            text += &format!("{median:>11.1} ({:.2})", median / bare);
        }
        text.push('\n');
    }
    text
}
