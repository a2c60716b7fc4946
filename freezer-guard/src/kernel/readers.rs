//! Those who follow the events: each has a ring buffer of its own.

use aya::maps::{Array, HashOfMaps, Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use freezer_guard_abi::{MAX_READERS, RING_BYTES, RawEvent, names};
use tokio::io::unix::AsyncFd;

use super::{
    Error,
    lock::FileLock,
    maps::open,
    pins::Locked,
    reading::{failed, lock, tell},
};
use crate::sys;

type Readers = HashOfMaps<MapData, u32, RingBuf<MapData>>;

/// Takes part in what happens from here on. Dropping it ends that.
pub struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    number: u32,
    readers: Readers,
    lost: Array<MapData, u64>,
    lost_before: u64,
    _lock: FileLock,
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
        tell(locked.dir())?;
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
            tell(locked.dir())?;
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
    pub fn next_event(&mut self) -> Option<RawEvent> {
        while let Some(bytes) = self.ring.get_mut().next() {
            // One of another length was written by another version.
            if let Some(event) = RawEvent::from_bytes(&bytes) {
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
