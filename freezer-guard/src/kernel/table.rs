//! The hash maps, typed.

use std::{cell::RefCell, path::Path};

use aya::{
    Pod,
    maps::{HashMap, Map as AyaMap, MapData, MapError},
};

use super::Error;
use crate::sys::HashMapFd;

/// Flags of `bpf_map_update_elem`: make an entry or change it; fail if there is one.
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// A map of the kernel's, as both sides change it.
pub trait Map<K, V> {
    /// The value of a key.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn get(&self, key: &K) -> Result<Option<V>, Error>;

    /// Every entry. What comes or goes meanwhile may be missing.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn entries(&self) -> Result<Vec<(K, V)>, Error>;

    /// One of the entries, if there is any. (Of many, this reads one.)
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn find(&self, is_meant: &dyn Fn(&K, &V) -> bool) -> Result<Option<(K, V)>, Error>;

    /// Makes an entry, or changes it.
    ///
    /// # Errors
    /// When the map is full.
    fn put(&self, key: K, value: V) -> Result<(), Error>;

    /// Makes an entry; returns `false`, and changes nothing, if there is one.
    ///
    /// # Errors
    /// When the map is full.
    fn add(&self, key: K, value: V) -> Result<bool, Error>;

    /// Removes an entry. The kernel side may have been faster.
    ///
    /// # Errors
    /// When the kernel does not do it.
    fn remove(&self, key: &K) -> Result<(), Error>;
}

/// A pinned hash map.
#[derive(Debug)]
pub struct Table<K: Pod, V: Pod> {
    map: RefCell<HashMap<MapData, K, V>>,
    fd: HashMapFd<K, V>,
    name: &'static str,
}

impl<K: Pod, V: Pod> Table<K, V> {
    pub(super) fn open(dir: &Path, name: &'static str) -> Result<Self, Error> {
        let doing = || format!("open the map {name}");
        let path = dir.join(name);
        let map =
            MapData::from_pin(&path).map_err(Error::failed(format!("open {}", path.display())))?;
        Ok(Self {
            fd: HashMapFd::of(&map).map_err(Error::failed(doing()))?,
            map: RefCell::new(
                AyaMap::HashMap(map)
                    .try_into()
                    .map_err(Error::failed(doing()))?,
            ),
            name,
        })
    }

    fn insert(&self, key: K, value: V, flags: u64) -> Result<(), MapError> {
        self.map.borrow_mut().insert(key, value, flags)
    }

    fn read_failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(&self, error: E) -> Error {
        Error::failed(format!("read the map {}", self.name))(error)
    }

    fn change_failed(&self, error: MapError) -> Error {
        match errno(&error) {
            Some(libc::E2BIG) => Error::Full(self.name),
            _ => Error::failed(format!("change the map {}", self.name))(error),
        }
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

impl<K: Pod, V: Pod> Map<K, V> for Table<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        match self.map.borrow().get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.read_failed(error)),
        }
    }

    fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        self.fd.entries().map_err(|error| self.read_failed(error))
    }

    fn find(&self, is_meant: &dyn Fn(&K, &V) -> bool) -> Result<Option<(K, V)>, Error> {
        for entry in self.map.borrow().iter() {
            let (key, value) = entry.map_err(|error| self.read_failed(error))?;
            if is_meant(&key, &value) {
                return Ok(Some((key, value)));
            }
        }
        Ok(None)
    }

    fn put(&self, key: K, value: V) -> Result<(), Error> {
        self.insert(key, value, BPF_ANY)
            .map_err(|error| self.change_failed(error))
    }

    fn add(&self, key: K, value: V) -> Result<bool, Error> {
        match self.insert(key, value, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.change_failed(error)),
        }
    }

    fn remove(&self, key: &K) -> Result<(), Error> {
        match self.map.borrow_mut().remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(self.change_failed(error)),
        }
    }
}
