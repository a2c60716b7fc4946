//! Measures the cost of guards on this host. The product does not contain this code.

mod fork;
mod measure;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser as _;
use freezer_guard::{Kind, VERSION, guard::chain};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use measure::{Error, Found, Part, Plan, Report, Row, hold};

/// Measures the cost of guards on this host: with nothing of freezer-guard loaded, with programs
/// that do nothing where a guard has programs, and with guards in force.
///
/// It needs root, and the program `freezer-guard` beside it or in PATH.
#[derive(clap::Parser)]
#[command(version = VERSION)]
struct Args {
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
    #[arg(long, value_name = "PART", requires = "top", hide = true)]
    hold: Option<Part>,
    /// The cgroups of `--hold`
    #[arg(value_name = "PATH", requires = "hold", hide = true)]
    top: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // A closed pipe is nobody's concern.
            let _ = error.print();
            let usage = Kind::Request.exit_code();
            return ExitCode::from(if error.use_stderr() { usage } else { 0 });
        }
    };
    let done = match (args.hold.clone(), &args.top) {
        (Some(part), Some(top)) => hold(part, top).map(|()| ExitCode::SUCCESS),
        _ => args.measure(),
    };
    done.unwrap_or_else(|error| {
        say(&chain(&error));
        error.exit_code().into()
    })
}

fn say(text: &str) {
    // The reader of standard error may be gone.
    let _ = writeln!(io::stderr(), "freezer-guard-bench: {text}");
}

impl Args {
    fn measure(&self) -> Result<ExitCode, Error> {
        let plan = Plan {
            guards: self.guards.clone(),
            tasks: self.tasks.clone(),
            dumps: self.dumps.clone(),
            only: self.only.clone(),
        };
        // A signal must not leave cgroups behind. (The helpers inherit the blocked signals: they
        // end with this process.)
        let signals = signals().map_err(Error::operation("listen for signals"))?;
        let mut signal = None;
        let report = measure::measure(&plan, &mut |what| {
            say(&format!("measuring {what}"));
            signal = signals.read_signal().ok().flatten();
            signal.is_none()
        });
        if let (Err(Error::Stopped), Some(signal)) = (&report, signal) {
            return Ok(ExitCode::from(128 + signal.ssi_signo as u8));
        }
        let report = report?;
        let written = match self.json {
            true => serde_json::to_string(&report).map_err(io::Error::from),
            false => Ok(table(&report.rows) + &more(&report)),
        };
        written
            .and_then(|text| writeln!(io::stdout(), "{}", text.trim_end()))
            .map_err(Error::operation("write the figures"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(
        &signals,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
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
