//! The exit codes of freezer-guard, and their documentation. Scripts depend on them: they must not
//! change.

use std::process::ExitCode;

use freezer_guard::Kind;

/// An exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u8);

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.0)
    }
}

impl From<Kind> for Code {
    fn from(kind: Kind) -> Self {
        Self(kind.exit_code())
    }
}

/// Success.
pub(super) const SUCCESS: Code = Code(0);
/// Wrong usage.
pub(super) const USAGE: Code = Code(Kind::Request.exit_code());
/// The host does not support it.
pub(super) const UNSUPPORTED: Code = Code(Kind::Unsupported.exit_code());
/// An internal error.
pub(super) const INTERNAL: Code = Code(Kind::Internal.exit_code());
/// A violation, or the end of the guard by force.
pub(super) const VIOLATED: Code = Code(Kind::Gone.exit_code());
/// Another guard is in the way, a cgroup is not FROZEN, or tasks are elsewhere.
pub(super) const BUSY: Code = Code(Kind::Busy.exit_code());
/// No permission.
pub(super) const PERMISSION: Code = Code(Kind::Permission.exit_code());
/// COMMAND cannot be executed, as in a shell.
pub(super) const CANNOT_EXECUTE: Code = Code(126);
/// COMMAND does not exist, as in a shell.
pub(super) const NOT_FOUND: Code = Code(127);

/// The page of the documentation about failures, as packages install it.
const TROUBLESHOOTING: &str = "/usr/share/doc/freezer-guard/docs/guide/troubleshooting.md";

impl Code {
    /// Returns the section of the troubleshooting page about this failure, if it has one.
    pub(super) fn help(self) -> Option<String> {
        let section = match self {
            VIOLATED => "exit-73",
            BUSY => "busy",
            UNSUPPORTED => "unsupported",
            _ => return None,
        };
        Some(format!("{TROUBLESHOOTING}#{section}"))
    }
}

/// The documentation of an exit code.
pub(super) struct Meaning {
    /// The exit code.
    pub(super) code: Code,
    /// The cause. It continues `The exit code is N:`.
    pub(super) cause: &'static str,
    /// The next step of the user.
    pub(super) remedy: &'static str,
}

/// Every exit code of freezer-guard itself.
pub(super) const MEANINGS: [Meaning; 8] = [
    Meaning {
        code: USAGE,
        cause: "wrong usage: an option, a path or a configuration is not valid, the image exists \
                already, or it is not good",
        remedy: "Correct the command line. The message names the option, the path or the line.",
    },
    Meaning {
        code: UNSUPPORTED,
        cause: "the kernel or CRIU does not support it, or not at the required level",
        remedy: "Run `freezer-guard doctor`: it names a remedy for each problem.",
    },
    Meaning {
        code: INTERNAL,
        cause: "an internal error, or the service does not answer",
        remedy: "Read the message and `journalctl -u freezer-guard`. Report it if it looks like a bug.",
    },
    Meaning {
        code: VIOLATED,
        cause: "a violation, or a process has ended the guard by force: do not trust the checkpoint",
        remedy: "Remove the image, stop the process that the message names, and take another checkpoint.",
    },
    Meaning {
        code: BUSY,
        cause: "busy: another guard is in the way or at another level, the cgroup is not FROZEN or does \
                not freeze, or tasks of the checkpoint are elsewhere or traced",
        remedy: "Try again later, use `--freeze`, or move the task that the message names into the cgroup.",
    },
    Meaning {
        code: PERMISSION,
        cause: "no permission",
        remedy: "Run it as root, or as a member of the group `freezer-guard` while the service runs.",
    },
    Meaning {
        code: CANNOT_EXECUTE,
        cause: "COMMAND or CRIU cannot be executed",
        remedy: "Check the permissions of that file.",
    },
    Meaning {
        code: NOT_FOUND,
        cause: "COMMAND or CRIU was not found",
        remedy: "Install it, or give its path.",
    },
];

/// The exit codes of a program that freezer-guard runs.
pub(super) const OF_COMMAND: &str =
    "the exit code of COMMAND or CRIU, or 128+N if signal N has ended it";

/// Returns the exit codes as text for `--help`.
pub(super) fn help() -> String {
    let mut text = format!("Exit codes: {OF_COMMAND}; or\n");
    for meaning in &MEANINGS {
        let options = textwrap::Options::new(80)
            .subsequent_indent("       ")
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        let line = format!("  {:<3}  {}", meaning.code.0, meaning.cause);
        text += &textwrap::fill(&line.replace('`', ""), options);
        text.push('\n');
    }
    text.pop();
    text
}
