//! Entries of the maps: which guards are in force, and how an entry is written.

use aya::{Pod, maps::MapError};
use freezer_guard_abi::{Guard as Entry, GuardId};

use super::Error;
use crate::kernel::{self, Maps, Table};

/// Flag of `bpf_map_update_elem`: fail if there is an entry.
pub(super) const BPF_NOEXIST: u64 = 1;

/// The id a mark names, if that guard is in force.
pub(super) fn live(maps: &Maps, mark: Result<GuardId, MapError>) -> Result<Option<GuardId>, Error> {
    match mark {
        Ok(id) => Ok(maps.guard(id)?.map(|_| id)),
        Err(_) => Ok(None),
    }
}

/// Whether no guard is in force.
pub(super) fn is_idle(maps: &Maps) -> Result<bool, Error> {
    // Of many guards, one of the first is in force.
    Ok(!maps
        .guards
        .iter()
        .flatten()
        .any(|(_, entry)| is_in_force(&entry)))
}

fn is_in_force(entry: &Entry) -> bool {
    !entry.is_candidate() && entry.is_in_force()
}

/// Every guard in force.
pub(super) fn in_force(maps: &Maps) -> Result<Vec<(GuardId, Entry)>, Error> {
    let mut guards = maps.guards.entries()?;
    guards.retain(|(_, entry)| is_in_force(entry));
    Ok(guards)
}

pub(super) fn insert<K: Pod, V: Pod>(
    map: &mut Table<K, V>,
    name: &'static str,
    key: K,
    value: V,
) -> Result<(), Error> {
    inserted(name, map.insert(key, value, BPF_NOEXIST))
}

pub(super) fn inserted(name: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    result.map_err(|error| match &error {
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => {
            Error::Full(name)
        }
        _ => map_error(name)(error),
    })
}

/// The kernel may have been faster: an entry that is not there is removed.
pub(super) fn remove<K: Pod, V: Pod>(
    map: &mut Table<K, V>,
    name: &'static str,
    key: &K,
) -> Result<(), Error> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(())
        }
        Err(error) => Err(map_error(name)(error)),
    }
}

fn map_error(name: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| {
        kernel::Error::Failed {
            operation: format!("change the map {name}"),
            source: source.into(),
        }
        .into()
    }
}
