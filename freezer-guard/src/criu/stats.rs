//! What CRIU counts while it dumps: the file `stats-dump` beside the images.

use std::{io::ErrorKind, path::Path};

use prost::Message;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Error, failed, file};

/// The file's name: CRIU writes it when a dump has succeeded (`write_stats` of `stats.c`).
const FILE: &str = "stats-dump";
/// Its size at most, bytes: that of CRIU has less than a hundred.
const LONGEST: u64 = 64 * 1024;
/// `IMG_SERVICE_MAGIC` and `STATS_MAGIC` of `criu/include/magic.h`.
const MAGIC: [u8; 8] = [0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57];

/// Times and counts of a dump: `dump_stats_entry` of CRIU's `images/stats.proto`.
#[derive(Clone, Copy, PartialEq, Eq, Message, Serialize, JsonSchema)]
pub struct DumpStats {
    /// The time that CRIU took to freeze and seize the tasks, in µs.
    #[prost(uint32, required, tag = "1")]
    #[serde(rename = "freezing_us")]
    pub freezing_time: u32,
    /// The time that the tasks were stopped, in µs.
    #[prost(uint32, required, tag = "2")]
    #[serde(rename = "frozen_us")]
    pub frozen_time: u32,
    /// The time that CRIU took to collect the memory, in µs.
    #[prost(uint32, required, tag = "3")]
    #[serde(rename = "memdump_us")]
    pub memdump_time: u32,
    /// The time that CRIU took to write the memory, in µs.
    #[prost(uint32, required, tag = "4")]
    #[serde(rename = "memwrite_us")]
    pub memwrite_time: u32,
    /// The number of pages of private memory that CRIU scanned.
    #[prost(uint64, required, tag = "5")]
    pub pages_scanned: u64,
    /// The number of pages that the parent image has.
    #[prost(uint64, required, tag = "6")]
    pub pages_skipped_parent: u64,
    /// The number of pages that CRIU wrote.
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
    /// The number of pages of shared memory that CRIU wrote.
    #[prost(uint64, optional, tag = "14")]
    pub shpages_written: Option<u64>,
}

/// `stats_entry` of the same file.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStats>,
}

impl DumpStats {
    /// Reads the file in a directory of images. Returns `None` if it is not there.
    ///
    /// # Errors
    /// When it cannot be read, or is no such file.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        match file::read(&path, LONGEST) {
            Ok(bytes) => match Self::parse(&bytes) {
                Some(stats) => Ok(Some(stats)),
                None => Err(failed("understand", &path, ErrorKind::InvalidData.into())),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    /// Two magic numbers, the size of the message, the message.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (size, rest) = rest.split_first_chunk()?;
        let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
        Entry::decode(rest.get(..size)?).ok()?.dump
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::{DumpStats, FILE, MAGIC};

    #[test]
    fn another_file_is_an_error_and_none_is_not() {
        let temp = tempfile::tempdir().expect("a folder");
        assert!(matches!(DumpStats::read(temp.path()), Ok(None)));
        fs::write(temp.path().join(FILE), "text").expect("a file");
        assert!(DumpStats::read(temp.path()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(bytes: Vec<u8>) {
            DumpStats::parse(&[&MAGIC[..], &bytes].concat());
        }
    }
}
