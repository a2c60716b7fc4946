//! What the kernel side tells of itself: the lines of `aya-log-ebpf`.
//!
//! `aya-log` reads them for the process that has loaded the programs, or by CAP_SYS_ADMIN,
//! which the service has not; and what it cannot decode ends it with a panic. Here they come
//! from the pin, and a line of another version is counted.

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use aya_log_common::{ArgumentKind, LogValueLength};
use freezer_guard_abi::{LogLine, names};

use super::{Error, maps::open, prerequisites::PIN_DIR};

/// A line, and its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// What it says; `None`: what another version says.
    pub line: Option<LogLine>,
    /// About what.
    pub numbers: [u64; 4],
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
        Some(line(&record).unwrap_or(UNKNOWN))
    }
}

const UNKNOWN: Line = Line {
    line: None,
    numbers: [0; 4],
};

/// The line in a record: its length, fields and arguments, each with a tag and a length.
fn line(record: &[u8]) -> Option<Line> {
    let (length, _) = length(record)?;
    let mut rest = record.get(size_of::<LogValueLength>()..length)?;
    let mut numbers = Vec::new();
    while !rest.is_empty() {
        let (tag, value, after) = field(rest)?;
        rest = after;
        // Each number comes after a hint of how to show it. No field of the header has a tag
        // as high as theirs.
        if tag == u8::from(ArgumentKind::U64) {
            numbers.push(u64::from_ne_bytes(value.try_into().ok()?));
        }
    }
    let [line, numbers @ ..]: [u64; 5] = numbers.try_into().ok()?;
    let line = LogLine::ALL.get(usize::try_from(line).ok()?);
    Some(Line {
        line: line.copied(),
        numbers,
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
    use aya_log_common::{Argument, Field, Header, Level, RecordFieldKind};
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

    fn numbers(numbers: [u64; 5]) -> Vec<u8> {
        let hint = argument(aya_log_common::DisplayHint::Default);
        let arguments = numbers.map(|number| [hint.clone(), argument(number)].concat());
        written(Level::Error, &arguments)
    }

    #[test]
    fn a_line_of_another_version_is_one() {
        let found = line(&numbers([99, 1, 2, 3, 4])).expect("it is whole");
        assert_eq!((found.line, found.numbers), (None, [1, 2, 3, 4]));
    }

    #[test]
    fn no_header_field_is_taken_for_a_number() {
        let fields = [RecordFieldKind::Target, RecordFieldKind::NumArgs];
        assert!(
            fields
                .map(u8::from)
                .into_iter()
                .all(|tag| tag < u8::from(ArgumentKind::U64))
        );
    }

    proptest! {
        #[test]
        fn no_record_makes_us_panic(record: Vec<u8>) {
            let _ = line(&record);
        }

        #[test]
        fn a_line_is_read_as_it_was_written(number in 0..LogLine::ALL.len(), four: [u64; 4]) {
            let [a, b, c, d] = four;
            let found = line(&numbers([number as u64, a, b, c, d])).expect("it is whole");
            prop_assert_eq!(found, Line { line: Some(LogLine::ALL[number]), numbers: four });
        }

        #[test]
        fn no_part_of_a_record_makes_us_panic(end in 0..120_usize, number: u64) {
            let record = numbers([number; 5]);
            let _ = line(&record[..end.min(record.len())]);
        }
    }
}
