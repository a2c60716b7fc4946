//! What `checkpoint` and `restore` have in common about CRIU.

use std::path::Path;

use freezer_guard::criu::{self, Criu};

use super::{guarded::Options, say};

/// A CRIU that will do on this kernel, and a word about what it is known for.
pub(super) fn find(path: Option<&Path>, options: &Options) -> Result<Criu, criu::Error> {
    let criu = Criu::find(path)?;
    criu.check()?;
    for bug in criu.bugs() {
        options.step(format_args!(
            "warning: CRIU {} {}: {}",
            criu.version(),
            bug.what,
            bug.remedy
        ));
    }
    Ok(criu)
}

/// What CRIU has to say of its failure.
pub(super) fn say_failure(log: &str, lines: &[String]) {
    if lines.is_empty() {
        say(format_args!(
            "CRIU has failed before it wrote anything to {log}"
        ));
        return;
    }
    say(format_args!("CRIU has failed; {log} says:"));
    for line in lines {
        say(format_args!("  {line}"));
    }
}
