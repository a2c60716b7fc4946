//! Lines of the journal about a guard, as `journalctl -o json` prints them.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::{Conclusion, names};
use crate::guard::Status;

/// What `freezer-guard end` logs, behind the names of the cgroups.
const BY_FORCE: &str = " ended by force, by uid ";
/// What the service logs when it kills a checkpointer.
const TIMED_OUT: &str = "its dump took longer than `automatic.timeout`";
/// What the service logs when it ends the guard of a user.
const HELD_TOO_LONG: &str = "a user has held it for longer than `users.longest_hold`";

/// The reason why a guard ended before its holder did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// `freezer-guard end --force`
    ByForce,
    /// `users.longest_hold`
    HeldTooLong,
    /// `automatic.timeout`
    TimedOut,
}

impl Cut {
    pub(super) fn conclusion(self) -> Conclusion {
        match self {
            Self::ByForce | Self::HeldTooLong => Conclusion::Violated,
            Self::TimedOut => Conclusion::Failed,
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::ByForce => "a process ended the guard by force",
            Self::HeldTooLong => {
                "the service ended the guard, since a user held it for longer than \
                 `users.longest_hold`"
            }
            Self::TimedOut => {
                "the service killed the checkpointer, since its dump took longer than \
                 `automatic.timeout`"
            }
        }
    }
}

/// A line that the service has logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalLine {
    /// When.
    pub time: SystemTime,
    /// What.
    pub message: String,
    /// `begun`, `ended`, `violated`, or the protection that it is about.
    pub kind: Option<String>,
    /// The process that was refused or got through.
    pub intruder_pid: Option<u32>,
    /// The checkpointer, where the guard begins.
    pub holder_pid: Option<u32>,
}

impl JournalLine {
    /// Whether it says that `freezer-guard end` ended this guard by force. The line names the cgroups of
    /// the guard, and not its id.
    pub fn ends_by_force(&self, guard: &Status) -> bool {
        let rest = self.message.strip_prefix("guard of ");
        let rest = rest.and_then(|rest| rest.strip_prefix(&*names(guard)));
        self.kind.is_none() && rest.is_some_and(|rest| rest.starts_with(BY_FORCE))
    }

    /// The early end of this guard, if the line is about that.
    pub(super) fn cut(&self, guard: &Status) -> Option<Cut> {
        match self.kind.as_deref() {
            None if self.ends_by_force(guard) => Some(Cut::ByForce),
            None if self.message.ends_with(HELD_TOO_LONG) => Some(Cut::HeldTooLong),
            Some("long") if self.message.ends_with(TIMED_OUT) => Some(Cut::TimedOut),
            _ => None,
        }
    }

    /// Whether it says what the guard's status says as well: that it began and ended.
    pub(super) fn is_of_life(&self) -> bool {
        matches!(self.kind.as_deref(), Some("begun" | "ended" | "violated"))
    }
}

/// Reads one line, if it is one.
pub fn journal_line(line: &str) -> Option<JournalLine> {
    let fields: Value = serde_json::from_str(line).ok()?;
    let text = |name: &str| text(&fields[name]);
    let number = |name: &str| text(name)?.parse().ok();
    let micros = text("__REALTIME_TIMESTAMP")?.parse().ok()?;
    Some(JournalLine {
        time: SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))?,
        message: text("MESSAGE")?,
        kind: text("KIND"),
        intruder_pid: number("INTRUDER_PID"),
        holder_pid: number("HOLDER_PID").filter(|pid| *pid != 0),
    })
}

/// A field: a text, or the bytes of what is none (systemd.journal-fields(7)).
fn text(field: &Value) -> Option<String> {
    if let Some(text) = field.as_str() {
        return Some(text.to_owned());
    }
    let bytes = field.as_array()?.iter();
    let bytes: Option<Vec<_>> = bytes
        .map(|byte| u8::try_from(byte.as_u64()?).ok())
        .collect();
    Some(String::from_utf8_lossy(&bytes?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{BY_FORCE, HELD_TOO_LONG, TIMED_OUT};

    /// The service and `freezer-guard end` log these words.
    #[test]
    fn the_words_are_those_of_the_log() {
        let worker = include_str!("../daemon/worker.rs");
        assert!(worker.contains(&format!("{TIMED_OUT}\"")));
        assert!(worker.contains(&format!("{HELD_TOO_LONG}\"")));
        let end = include_str!("../cli/end.rs");
        assert!(end.contains(&format!("\"guard of {{}}{BY_FORCE}")));
    }
}
