//! What the kernel side tells of itself: the lines of `aya-log-ebpf`.
//!
//! `aya-log` reads them for the process that has loaded the programs, or by CAP_SYS_ADMIN,
//! which the service has not; and what it cannot decode ends it with a panic. Here they come
//! from the pin, and a line of another version is counted.

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use aya_log_common::{ArgumentKind, LogValueLength, RecordFieldKind};
use freezer_guard_abi::{LogLevel, names};

use super::{Error, maps::open, prerequisites::PIN_DIR};

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How much it matters.
    pub level: LogLevel,
    /// What it says, without control characters.
    pub text: String,
}

/// The lines that the kernel side writes.
pub struct KernelLog(RingBuf<MapData>);

impl KernelLog {
    /// Opens the log of the programs that are loaded.
    ///
    /// # Errors
    /// When nothing is loaded, or the pin cannot be used.
    pub fn open() -> Result<Self, Error> {
        let map = open(Path::new(PIN_DIR), names::LOGS, Map::RingBuf)?;
        let ring = map
            .try_into()
            .map_err(Error::failed("open the kernel log"))?;
        Ok(Self(ring))
    }

    /// The next line, if there is one.
    pub fn next_line(&mut self) -> Option<Line> {
        let record = self.0.next()?;
        Some(line(&record).unwrap_or_else(|| Line {
            level: LogLevel::Warn,
            text: "a line that this version cannot read".to_owned(),
        }))
    }
}

/// The line in a record: its length, fields and arguments, each with a tag and a length.
fn line(record: &[u8]) -> Option<Line> {
    let (length, _) = length(record)?;
    let mut rest = record.get(size_of::<LogValueLength>()..length)?;
    let (mut level, mut arguments) = (None, None);
    while arguments.is_none() {
        let (tag, value, after) = field(rest)?;
        rest = after;
        if tag == u8::from(RecordFieldKind::Level) {
            level = LogLevel::ALL.get(usize::from(*value.first()?)).copied();
        } else if tag == u8::from(RecordFieldKind::NumArgs) {
            arguments = Some(u32::from_ne_bytes(value.try_into().ok()?));
        }
    }
    let (mut text, mut is_hex) = (String::new(), false);
    for _ in 0..arguments? {
        let (tag, value, after) = field(rest)?;
        rest = after;
        if tag == u8::from(ArgumentKind::DisplayHint) {
            is_hex = *value.first()? == u8::from(aya_log_common::DisplayHint::LowerHex);
        } else if tag == u8::from(ArgumentKind::Str) {
            text += &crate::words::escaped(std::str::from_utf8(value).ok()?);
        } else if tag == u8::from(ArgumentKind::U64) {
            let number = u64::from_ne_bytes(value.try_into().ok()?);
            text += &match std::mem::take(&mut is_hex) {
                true => format!("{number:x}"),
                false => number.to_string(),
            };
        } else {
            return None;
        }
    }
    Some(Line {
        level: level?,
        text,
    })
}

fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_at_checked(size_of::<LogValueLength>())?;
    let length = LogValueLength::from_ne_bytes(length.try_into().ok()?);
    Some((length.into(), rest))
}

/// A tag, a value, and what comes after it.
fn field(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (length, rest) = length(rest)?;
    let (value, rest) = rest.split_at_checked(length)?;
    Some((*tag, value, rest))
}

#[cfg(test)]
mod tests {
    use aya_log_common::{Argument, Field, Header, Level};
    use proptest::prelude::*;

    use super::*;

    /// As the macros of `aya-log-ebpf` write it.
    fn written(level: Level, arguments: &[Vec<u8>]) -> Vec<u8> {
        let mut record = vec![0; 2];
        let count = arguments.len() as u32;
        let header = Header::new("log", level, "log", "log.rs", 1, count).expect("it is short");
        header.with_bytes(&mut |bytes| {
            record.extend(bytes);
            Some(())
        });
        record.extend(arguments.concat());
        let length = (record.len() as u16).to_ne_bytes();
        record[..2].copy_from_slice(&length);
        // The ring's records are longer.
        record.extend([0; 32]);
        record
    }

    fn argument(argument: impl Argument) -> Vec<u8> {
        let (kind, value) = argument.as_argument();
        let field = Field::new(kind, value.as_ref()).expect("it is short");
        let mut written = Vec::new();
        field.with_bytes(&mut |bytes| {
            written.extend(bytes);
            Some(())
        });
        written
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let record = written(
            Level::Debug,
            &[
                argument("pid "),
                argument(12_u64),
                argument(", mode "),
                argument(aya_log_common::DisplayHint::LowerHex),
                argument(0x81ff_u64),
            ],
        );
        let line = line(&record).expect("it is whole");
        assert_eq!(line.level, LogLevel::Debug);
        assert_eq!(line.text, "pid 12, mode 81ff");
    }

    #[test]
    fn control_characters_are_shown() {
        let record = written(Level::Warn, &[argument("a\x1b[2Jb\n")]);
        let text = line(&record).expect("it is whole").text;
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }

    proptest! {
        #[test]
        fn no_record_makes_us_panic(record: Vec<u8>) {
            let _ = line(&record);
        }

        #[test]
        fn no_part_of_a_record_makes_us_panic(end in 0..120_usize, number: u64) {
            let record = written(Level::Info, &[argument("guard "), argument(number)]);
            let _ = line(&record[..end.min(record.len())]);
        }
    }
}
