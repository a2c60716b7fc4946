//! `freezer-guard doctor`: can this host do it?

use std::{io::Write as _, process::ExitCode};

use freezer_guard::{
    doctor::{self, Report, Verdict},
    json::Versioned,
};

use super::{error::Result, say::print};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
    /// Also print the state of each BPF program
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let report = doctor::examine();
    let verdict = report.verdict as u8;
    match args.json {
        true => {
            let text = serde_json::to_string(&Versioned::new(report))?;
            writeln!(std::io::stdout(), "{text}")?;
        }
        false => print(&describe(&report, args.verbose))?,
    }
    Ok(ExitCode::from(verdict))
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
