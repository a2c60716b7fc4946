//! `freezer-guard doctor`: can this host do it?

use std::{io::Write as _, process::ExitCode};

use freezer_guard::doctor::{self, Report, Verdict};

use super::{error::Result, say::print};

/// Ends with 0 when all is good, 1 when it is usable with limits, 2 when not.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print what has become of each BPF program, too
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let report = doctor::examine();
    match args.json {
        true => writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?,
        false => print(&describe(&report, args.verbose))?,
    }
    Ok(ExitCode::from(report.verdict as u8))
}

fn describe(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let mark = match check.verdict {
            Verdict::Good => "ok",
            Verdict::Limited => "LIMIT",
            Verdict::Unusable => "BAD",
        };
        text += &format!("{mark:<6}{:<17} {}\n", check.name, check.finding);
        if let Some(remedy) = &check.remedy {
            text += &format!("{:<23} -> {remedy}\n", "");
        }
    }
    if verbose {
        text += "\nprogram                  instructions  bytes  misses   calls  hook\n";
        for program in &report.programs {
            let state = match (program.loaded, program.attached) {
                (false, _) => " (not loaded)",
                (true, false) => " (not needed)",
                (true, true) => "",
            };
            text += &format!(
                "{:<25}{:>12} {:>6} {:>7} {:>7}  {}{state}\n",
                program.name,
                number(program.instructions_verified),
                number(program.bytes_jited),
                program.recursion_misses,
                number(program.calls),
                program.hook
            );
        }
    }
    text += match report.verdict {
        Verdict::Good => "\nThis host can guard checkpoints.\n",
        Verdict::Limited => "\nThis host can guard checkpoints, within limits.\n",
        Verdict::Unusable => "\nThis host cannot guard checkpoints.\n",
    };
    text
}

fn number(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}
