//! The directory for everything that is fetched or made once, outside the clone.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::toolchain;

pub(crate) fn dir() -> PathBuf {
    toolchain::cache_dir()
}

/// Held while something is put into the cache; a second set-up waits here.
pub(crate) fn lock() -> Result<File> {
    let dir = dir();
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!(
            "waiting for another set-up, which has locked {}",
            path.display()
        );
        file.lock()
            .with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// Makes the file or directory `path` by `make` and puts it in its place when it
/// is whole, so that what is in the cache is always complete.
pub(crate) fn put(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().context("a path in the cache has a parent")?;
    fs::create_dir_all(parent)?;
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(parent)?;
    let inside = unfinished.path().join("it");
    make(&inside)?;
    fs::rename(&inside, path).with_context(|| format!("move the result to {}", path.display()))
}
