//! `freezer-guard replay FILE`, which no help text names: `cargo xtask doctor FILE` runs it on a
//! maintainer's machine. It shows a bundle of `doctor`, and what this version decides for its facts.

use std::{env, ffi::OsString, fmt::Write as _, fs, process::ExitCode};

use freezer_guard::{
    VERSION,
    doctor::{Bundle, Replay, Trial},
    guard::chain,
    json,
};
use serde::Deserialize;

use super::{
    doctor::add_check,
    error::{Error, Result},
    exit,
    say::{print, say},
};

/// The exit code if this version decides otherwise than the host.
const DIFFERS: u8 = 1;
/// The exit code if the bundle holds no complete trial, so that nothing can be decided.
const UNDECIDED: u8 = 3;

/// A bundle, with the version of its format.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    bundle: Bundle,
}

/// Does it if the command line asks for it.
pub(super) fn asked() -> Option<ExitCode> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [command, file] = &arguments[..] else {
        return None;
    };
    (command == "replay").then(|| match replay(file) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("{}", chain(&error)));
            exit::INTERNAL.into()
        }
    })
}

fn replay(file: &OsString) -> Result<ExitCode> {
    let shown = file.display();
    let text = fs::read(file).map_err(Error::io(format!("read {shown}")))?;
    let known: Versioned = serde_json::from_slice(&text)?;
    if known.version > json::VERSION {
        let why = format!("a later version of freezer-guard wrote {shown}: use that version");
        return Err(Error::Unexpected(why));
    }
    let replay = Replay::of(&known.bundle);
    print(&describe(&known.bundle, &replay))?;
    Ok(match (replay.incomplete.is_empty(), replay.agrees()) {
        (false, _) => UNDECIDED.into(),
        (true, false) => DIFFERS.into(),
        (true, true) => ExitCode::SUCCESS,
    })
}

fn describe(bundle: &Bundle, replay: &Replay) -> String {
    let mut text = format!(
        "Linux {} {}, freezer-guard {}\n",
        bundle.kernel.release, bundle.kernel.build, bundle.freezer_guard
    );
    if bundle.freezer_guard != VERSION {
        text += &format!("This is freezer-guard {VERSION}: the programs may differ.\n");
    }
    text.push('\n');
    for check in &bundle.checks {
        let finding = check.finding.as_deref().unwrap_or("(left out)");
        add_check(
            &mut text,
            check.verdict,
            &check.name,
            finding,
            check.remedy.as_deref(),
        );
    }
    for trial in &bundle.trials {
        add_trial(&mut text, trial);
    }
    text += "\nprotection  recorded     by the kernel's types  decided with all facts\n";
    for row in &replay.rows {
        let mark = match row.decided {
            Some(_) if !row.agrees() => "  DIFFERS",
            _ => "",
        };
        text += &format!(
            "{:<11} {:<12} {:<22} {}{mark}\n",
            row.protection,
            row.recorded,
            row.promised,
            row.decided.unwrap_or("-")
        );
    }
    for reason in &replay.reasons {
        text += &format!("  reason: {reason}\n");
    }
    if !replay.missing.is_empty() {
        text += &format!("  BTF lacks: {}\n", replay.missing.join(", "));
    }
    if !replay.incomplete.is_empty() {
        text += "\nThe bundle holds no complete trial, so there is no decision with all facts:\n";
        for reason in &replay.incomplete {
            text += &format!("  {reason}\n");
        }
    } else if replay.agrees() {
        text += "\nThis version decides as the host did.\n";
    } else {
        text += "\nThis version decides otherwise than the host did.\n";
    }
    text
}

/// Adds a trial that did not go well, with the kernel's reasons.
fn add_trial(text: &mut String, trial: &Trial) {
    for reason in &trial.reasons {
        let words = reason.text.as_deref().unwrap_or("(left out)");
        // A string takes everything.
        let _ = writeln!(text, "\nthe guard on {}: {words}", trial.hierarchy);
        if let Some(log) = &reason.verifier_log {
            let _ = writeln!(text, "{log}");
        }
    }
    if trial.proven == Some(false) {
        let _ = writeln!(text, "\nthe guard on {} has no proof", trial.hierarchy);
    }
}
