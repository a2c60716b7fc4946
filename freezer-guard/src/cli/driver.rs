//! CRIU, as `checkpoint` and `restore` drive it.

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    process::ExitStatus,
};

use clap::ValueHint;
use freezer_guard::{
    criu::{Criu, Log},
    json::Versioned,
};

use super::{error::Result, guarded::Options, say::say};

/// What both are told.
#[derive(clap::Args)]
pub(super) struct Driver {
    /// The CRIU to execute; by default the `criu` in PATH
    #[arg(long, value_name = "FILE", value_hint = ValueHint::ExecutablePath)]
    criu: Option<PathBuf>,
    #[command(flatten)]
    pub(super) options: Options,
    /// More options for CRIU after `--`, such as --tcp-established
    #[arg(last = true, value_name = "CRIU OPTIONS")]
    pub(super) more: Vec<OsString>,
}

impl Driver {
    /// Whether the user may give CRIU a script of his own.
    pub(super) fn may_have_action_script(&self) -> bool {
        self.more.iter().any(|word| may_bring_a_script(word))
    }

    /// A CRIU that will do on this kernel, and a word about what it is known for.
    pub(super) fn find(&self) -> Result<Criu> {
        let criu = Criu::find(self.criu.as_deref())?;
        let check = criu.check();
        for bug in criu.bugs(&check) {
            self.options.step(format_args!(
                "warning: CRIU {} {}: {}",
                criu.version(),
                bug.what,
                bug.remedy
            ));
        }
        check?;
        Ok(criu)
    }
}

/// Whether this is an option of CRIU for a script or for a file with options. `getopt_long(3)` takes the
/// beginning of an option for the option.
fn may_bring_a_script(word: &OsStr) -> bool {
    const OPTIONS: [&[u8]; 2] = [b"--action-script", b"--config"];
    let name = word.as_bytes().split(|byte| *byte == b'=').next();
    let name = name.filter(|name| name.len() > b"--".len());
    name.is_some_and(|name| OPTIONS.iter().any(|option| option.starts_with(name)))
}

/// One JSON object on standard output. What has come about counts, whether somebody
/// reads it or not.
pub(super) fn print(object: &impl serde::Serialize) {
    let written = serde_json::to_string(&Versioned::new(object))
        .map_err(std::io::Error::from)
        .and_then(|text| writeln!(std::io::stdout(), "{text}"));
    if let Err(error) = written {
        say(format_args!("cannot print it as JSON: {error}"));
    }
}

/// What CRIU has to say of its failure. Nothing, when a signal has ended it.
pub(super) fn say_failure(log: &Log, status: ExitStatus) {
    let path = log.path().display();
    if status.code().is_none() {
        say(format_args!("see {path} for CRIU's last steps"));
        return;
    }
    let lines = log.failure();
    if lines.is_empty() {
        say(format_args!(
            "CRIU failed before it wrote anything to {path}"
        ));
        return;
    }
    say(format_args!("CRIU failed; {path} says:"));
    for line in lines {
        say(format_args!("  {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::may_bring_a_script;

    #[test]
    fn scripts_are_found_by_the_beginning_of_the_option() {
        for word in [
            "--action-script",
            "--action-script=/x",
            "--ac=/x",
            "--config",
            "--con=/x",
        ] {
            assert!(may_bring_a_script(word.as_ref()), "{word}");
        }
        for word in [
            "--tcp-established",
            "--",
            "-v4",
            "/action-script",
            "--cgroup-root=/x",
        ] {
            assert!(!may_bring_a_script(word.as_ref()), "{word}");
        }
    }
}
