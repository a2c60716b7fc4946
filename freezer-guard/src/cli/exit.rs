//! The exit codes of ours. They must not drift: scripts go by them.

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

/// All went well.
pub(super) const SUCCESS: Code = Code(0);
/// Wrong usage.
pub(super) const USAGE: Code = Code(Kind::Request.exit_code());
/// The kernel cannot do it, or not as far as is required.
const UNSUPPORTED: Code = Code(Kind::Unsupported.exit_code());
/// Something unexpected.
pub(super) const INTERNAL: Code = Code(Kind::Internal.exit_code());
/// The guard did not hold to the end.
pub(super) const VIOLATED: Code = Code(Kind::Gone.exit_code());
/// Somebody else's guard, not FROZEN, or not all of the tree is there.
pub(super) const BUSY: Code = Code(Kind::Busy.exit_code());
/// COMMAND cannot be executed, as the shell has it.
pub(super) const CANNOT_EXECUTE: Code = Code(126);
/// COMMAND is not there, as the shell has it.
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

/// For `--help`.
pub(super) const HELP: &str = "\
Exit codes: those of COMMAND or CRIU (128+N when signal N ended it), or
  64  wrong usage; an image that is there already, or is not good
  69  the kernel cannot do it, or not as far as --require wants; `criu check` says no
  70  internal error
  73  the guard was violated or ended by somebody: do not trust the checkpoint
  75  busy: another guard is in the way, or guards are held at another level; the
      cgroup is not FROZEN, or tasks of the checkpoint are elsewhere or being traced
  77  no permission
  126, 127  COMMAND or CRIU cannot be executed, or was not found";
