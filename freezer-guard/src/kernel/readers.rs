//! Those who follow the events: each has a ring buffer of its own.
//!
//! A reader's number is that of a file in `/run/freezer-guard` that it holds
//! locked. The kernel unlocks it when the reader is gone, however it went.

use std::{fs::File, io, path::Path};

use aya::maps::{Array, HashOfMaps, Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use freezer_guard_ebpf::{Event, MAX_READERS, RING_BYTES, names};
use nix::fcntl::{Flock, FlockArg};
use tokio::io::unix::AsyncFd;

use super::{
    Error, Locked,
    daemon::{RUN_DIR, open_lock},
    maps::open,
};
use crate::sys;

fn name(number: u32) -> String {
    format!("reader-{number}")
}

/// The lock of a reader's number, if nobody has it.
fn lock(number: u32) -> io::Result<Option<Flock<File>>> {
    let file = open_lock(&name(number))?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
}

/// The numbers of those who follow the events, a bit each.
fn reading() -> u64 {
    (0..MAX_READERS)
        .filter(|number| Path::new(RUN_DIR).join(name(*number)).exists())
        .filter(|number| matches!(lock(*number), Ok(None)))
        .fold(0, |reading, number| reading | 1 << number)
}

/// Whether somebody follows the events.
pub(super) fn are_there() -> bool {
    reading() != 0
}

/// Lets the programs know for whom they have to write events. One who has gone without a
/// word stays known until the next one comes or goes.
pub(super) fn tell(locked: &Locked) -> Result<(), Error> {
    let mut map: Array<MapData, u64> = open(locked.dir(), names::READING, Map::Array)?
        .try_into()
        .map_err(failed)?;
    map.set(0, reading(), 0).map_err(failed)
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::failed("follow the events")(error)
}

type Readers = HashOfMaps<MapData, u32, RingBuf<MapData>>;

/// Takes part in what happens from here on. Dropping it ends that.
pub struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    number: u32,
    readers: Readers,
    lost: Array<MapData, u64>,
    lost_before: u64,
    _lock: Flock<File>,
}

impl Reader {
    /// Begins to follow the events of all guards, those to come included.
    ///
    /// # Errors
    /// When too many do already, or without a tokio runtime.
    pub fn open(locked: &Locked) -> Result<Self, Error> {
        let mut found = None;
        for number in 0..MAX_READERS {
            if let Some(lock) = lock(number).map_err(failed)? {
                found = Some((number, lock));
                break;
            }
        }
        let Some((number, lock)) = found else {
            return Err(failed(format!("{MAX_READERS} others do already")));
        };
        locked.make_readers()?;
        let mut readers: Readers = open(locked.dir(), names::READERS, Map::HashOfMaps)?
            .try_into()
            .map_err(failed)?;
        let mut lost: Array<MapData, u64> = open(locked.dir(), names::LOST, Map::Array)?
            .try_into()
            .map_err(failed)?;
        let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, RING_BYTES, 0);
        let ring = MapData::create(ring, "events", None).map_err(failed)?;
        let ring: RingBuf<MapData> = Map::RingBuf(ring).try_into().map_err(failed)?;
        lost.set(number, 0, 0).map_err(failed)?;
        // What a reader that crashed has left there goes.
        readers.insert(number, &ring, 0).map_err(failed)?;
        tell(locked)?;
        Ok(Self {
            ring: sys::watch_events(ring).map_err(failed)?,
            number,
            readers,
            lost,
            lost_before: 0,
            _lock: lock,
        })
    }

    /// Ends it, and removes what is not needed any more.
    ///
    /// # Errors
    /// When the pins cannot be used.
    pub fn close(self) -> Result<(), Error> {
        drop(self);
        let locked = Locked::wait()?;
        if locked.open()?.is_some() {
            tell(&locked)?;
        }
        Ok(())
    }

    /// Returns when there may be an event.
    pub async fn ready(&mut self) {
        match self.ring.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            // Only when the runtime shuts down.
            Err(_) => std::future::pending().await,
        }
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some(bytes) = self.ring.get_mut().next() {
            // One of another length was written by another version.
            if let Some(event) = Event::from_bytes(&bytes) {
                return Some(event);
            }
        }
        None
    }

    /// How many events did not fit into the ring buffer since this was asked.
    pub fn lost(&mut self) -> u64 {
        let now = self.lost.get(&self.number, 0).unwrap_or(self.lost_before);
        let lost = now - self.lost_before;
        self.lost_before = now;
        lost
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // If this fails, the next reader with this number takes its place.
        let _ = self.readers.remove(&self.number);
    }
}
