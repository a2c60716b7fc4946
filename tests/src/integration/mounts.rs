//! Mounts that go when a test ends, however it does.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Something that is mounted on this folder or file until this is dropped.
pub(super) struct Mount(pub(super) PathBuf);

impl Mount {
    /// Mounts a file system that has no device.
    pub(super) fn new(kind: &str, place: PathBuf, options: Option<&str>) -> Result<Self> {
        mount(Some(kind), &place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount a {kind} on {}", place.display()))?;
        Ok(Self(place))
    }

    pub(super) fn bind(source: &Path, place: PathBuf) -> Result<Self> {
        let none = None::<&str>;
        mount(Some(source), &place, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind {} to {}", source.display(), place.display()))?;
        Ok(Self(place))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The guest ends soon.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
