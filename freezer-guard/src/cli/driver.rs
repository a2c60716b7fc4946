//! CRIU, as `checkpoint` and `restore` drive it.

use std::{
    ffi::OsString, io::Write as _, os::unix::ffi::OsStrExt as _, path::PathBuf, process::ExitStatus,
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
    /// Whether the user gives CRIU a script of his own.
    pub(super) fn has_action_script(&self) -> bool {
        const OPTION: &[u8] = b"--action-script";
        self.more.iter().any(|word| {
            let rest = word.as_bytes().strip_prefix(OPTION);
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'=')))
        })
    }

    /// A CRIU that will do on this kernel, and a word about what it is known for.
    pub(super) fn find(&self) -> Result<Criu> {
        let criu = Criu::find(self.criu.as_deref())?;
        criu.check()?;
        for bug in criu.bugs() {
            self.options.step(format_args!(
                "warning: CRIU {} {}: {}",
                criu.version(),
                bug.what,
                bug.remedy
            ));
        }
        Ok(criu)
    }
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
