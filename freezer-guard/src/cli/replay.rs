//! `freezer-guard replay FILE`, which no help text names: `cargo xtask doctor FILE` runs it on a
//! maintainer's machine. It shows a bundle of `doctor`, and what this version decides for its facts.

use std::{
    borrow::Cow,
    env,
    ffi::OsString,
    fmt::{Display, Write as _},
    fs::File,
    io::Read as _,
    process::ExitCode,
};

use freezer_guard::{
    VERSION,
    doctor::{Bundle, Replay, Trial},
    guard::chain,
    json,
    words::{escaped, mebibytes},
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

/// A bundle has some ten thousand bytes, or more with logs of the verifier.
const MOST_BYTES: u64 = 16 << 20;

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
            // The error may have words of the file.
            say(format_args!("{}", escaped(&chain(&error))));
            exit::INTERNAL.into()
        }
    })
}

fn replay(file: &OsString) -> Result<ExitCode> {
    let shown = file.display();
    let file = File::open(file).map_err(Error::io(format!("open {shown}")))?;
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(Error::io(format!("read {shown}")))?;
    if text.len() as u64 > MOST_BYTES {
        let most = mebibytes(MOST_BYTES);
        return Err(Error::Unexpected(format!(
            "{shown} is no bundle: it has more than {most}"
        )));
    }
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

/// Describes a bundle. Its host is a stranger's, so each field stays in one line; only the verifier's log
/// has lines of its own, behind a margin.
fn describe(bundle: &Bundle, replay: &Replay) -> String {
    let mut text = format!(
        "Linux {} {}, freezer-guard {}\n",
        escaped(&bundle.kernel.release),
        escaped(&bundle.kernel.build),
        escaped(&bundle.freezer_guard)
    );
    if bundle.freezer_guard != VERSION {
        text += &format!("This is freezer-guard {VERSION}: the programs may differ.\n");
    }
    text.push('\n');
    for check in &bundle.checks {
        add_check(
            &mut text,
            check.verdict,
            &escaped(&check.name),
            &known(check.finding.as_deref()),
            check.remedy.as_deref().map(escaped).as_deref(),
        );
    }
    for trial in &bundle.trials {
        add_trial(&mut text, trial);
    }
    add_decision(&mut text, replay);
    text
}

/// The text of a field that may be left out.
fn known(field: Option<&str>) -> Cow<'_, str> {
    field.map_or(Cow::Borrowed("(left out)"), escaped)
}

fn add_decision(text: &mut String, replay: &Replay) {
    *text += "\nprotection  recorded     by the kernel's types  decided with all facts\n";
    for row in &replay.rows {
        let mark = match row.decided {
            Some(_) if !row.agrees() => "  DIFFERS",
            _ => "",
        };
        *text += &format!(
            "{:<11} {:<12} {:<22} {}{mark}\n",
            row.protection,
            escaped(&row.recorded),
            row.promised,
            row.decided.unwrap_or("-")
        );
    }
    let mut add = |name: &str, words: &dyn Display| {
        // A string takes everything.
        let _ = writeln!(text, "  {name}{}", escaped(&words.to_string()));
    };
    for reason in &replay.reasons {
        add("reason: ", reason);
    }
    if !replay.missing.is_empty() {
        add("BTF lacks: ", &replay.missing.join(", "));
    }
    if !replay.incomplete.is_empty() {
        *text += "\nThe bundle holds no complete trial, so there is no decision with all facts:\n";
        for reason in &replay.incomplete {
            *text += &format!("  {}\n", escaped(reason));
        }
    } else if replay.agrees() {
        *text += "\nThis version decides as the host did.\n";
    } else {
        *text += "\nThis version decides otherwise than the host did.\n";
    }
}

/// Adds a trial that did not go well, with the kernel's reasons.
fn add_trial(text: &mut String, trial: &Trial) {
    let hierarchy = escaped(&trial.hierarchy);
    for reason in &trial.reasons {
        // A string takes everything.
        let words = known(reason.text.as_deref());
        let _ = writeln!(text, "\nthe guard on {hierarchy}: {words}");
        for line in reason.verifier_log.iter().flat_map(|log| log.lines()) {
            let _ = writeln!(text, "    | {}", escaped(line));
        }
    }
    if trial.proven == Some(false) {
        let _ = writeln!(text, "\nthe guard on {hierarchy} has no proof");
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, fs::File};

    use freezer_guard::doctor::Replay;
    use serde_json::Value;

    use super::{MOST_BYTES, Versioned, describe, replay};

    const SAMPLE: &str = include_str!("../doctor/samples/6.18-no-bpf.json");
    const FORGED: &str = "x\nFORGED\r\u{1b}[2J\u{2028}";

    /// Appends a forged line to each text, names included, but for the words of an enum.
    fn forge(value: &mut Value) {
        match value {
            Value::String(text) => text.push_str(FORGED),
            Value::Array(list) => list.iter_mut().for_each(forge),
            Value::Object(object) => {
                for (name, value) in object.iter_mut().filter(|(name, _)| *name != "verdict") {
                    if name == "verifier_log" {
                        *value = FORGED.into();
                    }
                    forge(value);
                }
                if let Some(Value::Object(fields)) = object.get_mut("fields") {
                    fields.insert(FORGED.to_owned(), Value::Null);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn no_field_of_a_bundle_forges_a_line() {
        let mut bundle: Value = serde_json::from_str(SAMPLE).expect("it is JSON");
        forge(&mut bundle);
        let bundle: Versioned = serde_json::from_value(bundle).expect("a bundle");
        let bundle = bundle.bundle;
        let text = describe(&bundle, &Replay::of(&bundle));
        assert!(
            text.contains("FORGED") && text.contains("BTF lacks"),
            "{text}"
        );
        for line in text.lines() {
            assert!(!line.starts_with("FORGED"), "{text}");
            let is_control = |letter: char| letter.is_control() || letter == '\u{2028}';
            assert!(!line.contains(is_control), "{text}");
        }
        assert!(text.contains("\n    | FORGED"), "{text}");
    }

    #[test]
    fn a_file_that_is_too_long_is_no_bundle() {
        let temp = tempfile::tempdir().expect("a directory");
        let path = temp.path().join("bundle");
        let file = File::create(&path).expect("a file");
        file.set_len(MOST_BYTES + 1).expect("a long file");
        let error = replay(&OsString::from(&path)).expect_err("it is too long");
        assert!(error.to_string().contains("16.0 MiB"), "{error}");
        let error = replay(&OsString::from("/dev/zero")).expect_err("it has no end");
        assert!(error.to_string().contains("16.0 MiB"), "{error}");
    }
}
