//! Foreign text in words: users choose the names of their tasks and cgroups.
//!
//! A name may hold what drives a terminal, forges a line of a log, or reorders what a reader
//! sees. Text for people escapes it; JSON has the name as it is, and beside one that is no text
//! (UTF-8) its bytes.

use std::{
    borrow::Cow,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serializer;

/// Returns the text with each control character, and each that changes the direction of
/// writing, in Rust's escaped form: `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escape(text, is_dangerous)
}

/// The same for text of several lines, which stay lines.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| {
        character != '\n' && is_dangerous(character)
    })
}

/// A year.
pub const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Takes a time such as `10m` or `1h 30m`. No clock can add the longest that can be written, so a
/// year is the longest that is taken.
///
/// # Errors
/// When the text is no such time. The error continues a sentence that begins with the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration > YEAR => Err("is longer than a year".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("is no time: {error}")),
    }
}

/// Returns a time as RFC 3339 in UTC, with milliseconds. The format has the years 1970 to 9999: an
/// earlier or a later time appears as the first or the last of them.
pub fn timestamp(time: SystemTime) -> String {
    /// 9999-12-31T23:59:59.999Z
    const LAST: Duration = Duration::from_millis(253_402_300_799_999);
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let time = SystemTime::UNIX_EPOCH + since.unwrap_or_default().min(LAST);
    humantime::format_rfc3339_millis(time).to_string()
}

/// Returns a size in MiB: `1.5 MiB`.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Returns the time that such a text names, if it is one.
pub fn time_of(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

fn escape(text: &str, is_dangerous: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_dangerous) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match is_dangerous(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped.into()
}

/// Unicode's bidirectional controls (UAX #9) and its own line ends are no control characters.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Returns these paths as one text.
pub fn join(paths: &[PathBuf], separator: &str) -> String {
    let texts: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
    texts.join(separator)
}

/// Serializes a path as text, in which U+FFFD replaces what is none.
///
/// # Errors
/// Those of the serializer.
pub fn text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The same for several.
///
/// # Errors
/// Those of the serializer.
pub fn texts<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// Returns the bytes of a path in Base64 (RFC 4648), if it is no text.
pub fn base64(path: &Path) -> Option<String> {
    path.to_str().is_none().then(|| encoded(path))
}

/// The same for several: of all, if one is no text.
pub fn all_base64(paths: &[PathBuf]) -> Option<Vec<String>> {
    let is_text = paths.iter().all(|path| path.to_str().is_some());
    (!is_text).then(|| paths.iter().map(|path| encoded(path)).collect())
}

fn encoded(path: &Path) -> String {
    BASE64_STANDARD.encode(path.as_os_str().as_bytes())
}

/// Returns the path with these bytes, if it is one.
pub fn from_base64(text: &str) -> Option<PathBuf> {
    let bytes = BASE64_STANDARD.decode(text).ok()?;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsString,
        os::unix::ffi::OsStringExt as _,
        path::PathBuf,
        time::{Duration, SystemTime},
    };

    use freezer_guard_abi::{Act, CgroupKey, EventKind, RawEvent};
    use proptest::prelude::*;

    use super::{base64, escaped, escaped_lines, from_base64, is_dangerous, time_of, timestamp};
    use crate::guard::{EventDecoder, Incident, Outcome};

    #[test]
    fn harmless_text_is_not_changed() {
        for text in ["", "criu", "/sys/fs/cgroup/a b\\x2d", "грузовик 船"] {
            assert_eq!(escaped(text), text);
        }
        assert_eq!(escaped_lines("one\ntwo"), "one\ntwo");
        assert_eq!(escaped("one\ntwo\u{1b}[2J"), "one\\ntwo\\u{1b}[2J");
        assert_eq!(escaped("\u{202e}gnp"), "\\u{202e}gnp");
    }

    #[test]
    fn every_time_has_a_text() {
        let epoch = SystemTime::UNIX_EPOCH;
        let late = epoch + Duration::from_secs(300_000_000_000);
        assert_eq!(timestamp(late), "9999-12-31T23:59:59.999Z");
        let early = epoch - Duration::from_secs(1);
        assert_eq!(timestamp(early), "1970-01-01T00:00:00.000Z");
        assert_eq!(time_of(&timestamp(early)), Some(epoch));
    }

    proptest! {
        #[test]
        fn no_escaped_text_drives_a_terminal(text: String) {
            prop_assert!(!escaped(&text).contains(is_dangerous));
            prop_assert!(!escaped_lines(&text).replace('\n', "").contains(is_dangerous));
        }

        #[test]
        fn every_path_is_exact_in_json(bytes: Vec<u8>) {
            let path = PathBuf::from(OsString::from_vec(bytes));
            match base64(&path) {
                None => prop_assert!(path.to_str().is_some()),
                Some(exact) => prop_assert_eq!(from_base64(&exact), Some(path)),
            }
        }

        /// A task has any 15 bytes for a name.
        #[test]
        fn no_name_of_a_task_drives_a_terminal(
            mut comm: [u8; 16], kind in 0..EventKind::ALL.len() as u32,
            act in 0..Act::ALL.len() as u32,
        ) {
            comm[15] = 0;
            let event = RawEvent {
                time_ns: 0, guard: 1, cgroup: CgroupKey::new(0, 0), kind, act, protection: 0,
                detail: 0, victim: 1, pid: 1, tid: 1, uid: 1, checkpointing: 1, reserved: 0, comm,
            };
            let incident = Incident::of_event(&event, Outcome::Done).to_string();
            prop_assert!(!incident.contains(is_dangerous), "{incident:?}");
            let text = EventDecoder::default().decode(&event).to_string();
            prop_assert!(!text.contains(is_dangerous), "{text:?}");
        }
    }
}
