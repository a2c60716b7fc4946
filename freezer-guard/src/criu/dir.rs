//! A directory of images, as files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{Error, INVENTORY, failed};

/// The name of the evidence, with which that of its draft begins.
pub(super) const EVIDENCE: &str = "freezer-guard.json";

/// The name of the draft.
pub(super) const DRAFT: &str = "freezer-guard.json.draft";

/// The end of a directory's name while CRIU writes images into it.
pub(super) const UNFINISHED: &str = "unfinished";

/// Whether CRIU has written the images in a directory to the end.
pub fn are_complete(dir: &Path) -> bool {
    dir.join(INVENTORY).exists()
}

/// The images of several trees, which have a directory each in this one.
pub(super) fn trees(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.map(|entry| entry.path());
    let mut trees: Vec<_> = dirs.filter(|dir| are_complete(dir)).collect();
    trees.sort();
    trees
}

/// How large the files in a directory with this beginning of their names are, without the
/// evidence, bytes.
pub fn bytes(dir: &Path, prefix: &str) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_meant = |name: &str| name.starts_with(prefix) && !name.starts_with(EVIDENCE);
    entries
        .filter(|entry| is_meant(&entry.file_name().to_string_lossy()))
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Where images for this place are being written, if nothing was there before.
pub(super) fn unfinished(place: &Path) -> PathBuf {
    beside(place, UNFINISHED)
}

/// Where images for this place are that are of this kind, the first of them.
pub(super) fn beside(place: &Path, kind: &str) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(kind);
    place.with_file_name(name)
}

/// Waits until the files of a directory and their names are on the disk.
///
/// # Errors
/// When they cannot be written.
pub fn sync(dir: &Path) -> Result<(), Error> {
    let read = |source| failed("read", dir, source);
    for entry in fs::read_dir(dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.file_type().map_err(read)?.is_file() {
            sync_one(&entry.path())?;
        }
    }
    sync_one(dir)
}

pub(super) fn sync_one(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| failed("sync", path, source))
}
