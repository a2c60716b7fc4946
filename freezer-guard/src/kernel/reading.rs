//! The numbers of the readers of events.
//!
//! A reader's number is that of a file in `/run/freezer-guard` that it holds
//! locked. The kernel unlocks it when the reader is gone, however it went.

use std::{io, path::Path};

use aya::maps::{Array, Map, MapData};
use freezer_guard_abi::{MAX_READERS, names};

use super::{Error, lock::FileLock, maps::open};

fn name(number: u32) -> String {
    format!("reader-{number}")
}

/// The lock of a reader's number, if nobody has it.
pub(super) fn lock(number: u32) -> io::Result<Option<FileLock>> {
    FileLock::take(&name(number))
}

/// The numbers of those who follow the events, a bit each.
fn reading() -> u64 {
    (0..MAX_READERS)
        .filter(|number| FileLock::is_held(&name(*number)))
        .fold(0, |reading, number| reading | 1 << number)
}

/// Whether somebody follows the events.
pub(super) fn are_there() -> bool {
    reading() != 0
}

/// Lets the programs know for whom they have to write events. One who has gone without a
/// word stays known until the next one comes or goes.
pub(super) fn tell(dir: &Path) -> Result<(), Error> {
    let mut map: Array<MapData, u64> = open(dir, names::READING, Map::Array)?
        .try_into()
        .map_err(failed)?;
    map.set(0, reading(), 0).map_err(failed)
}

pub(super) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::failed("follow the events")(error)
}
