//! Lines of the journal about a guard, as `journalctl -o json` prints them.

use std::time::{Duration, SystemTime};

use serde_json::Value;

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
