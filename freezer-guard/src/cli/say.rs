//! Text for people.

use std::io::Write as _;

use freezer_guard::{kernel, words::escaped_lines};

use super::exit::Code;

/// One line on standard error.
pub(super) fn say(line: std::fmt::Arguments<'_>) {
    // Nobody may be listening any more: that must not end a guard.
    let line = line.to_string();
    let _ = writeln!(std::io::stderr(), "freezer-guard: {}", escaped_lines(&line));
}

/// Names the section of the documentation about this failure, if there is one.
pub(super) fn say_help(code: Code) {
    if let Some(section) = code.help() {
        say(format_args!("help: {section}"));
    }
}

/// Text for people on standard output.
pub(super) fn print(text: &str) -> std::io::Result<()> {
    std::io::stdout().write_all(escaped_lines(text).as_bytes())
}

/// What the verifier says, line by line.
pub(super) fn say_verifier_log(error: &kernel::Error) {
    let Some(log) = error.verifier_log() else {
        return;
    };
    say(format_args!("the verifier's log:"));
    for line in log.lines() {
        say(format_args!("  {line}"));
    }
}
