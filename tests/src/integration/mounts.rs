//! Mounts that go when a test ends, however it does.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::scratch;

/// Something that is mounted on this directory or file until this is dropped.
pub(super) struct Mount(pub(super) PathBuf);

impl Mount {
    /// Mounts a file system that has no device.
    pub(super) fn new(kind: &str, place: PathBuf, options: Option<&str>) -> Result<Self> {
        mount(Some(kind), &place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount a {kind} on {}", place.display()))?;
        Ok(Self(place))
    }

    /// Mounts a file system where no text can name it. A user can do that with FUSE.
    pub(super) fn without_text() -> Result<Self> {
        let place = scratch("mount").with_extension(OsStr::from_bytes(b"a b\xff"));
        fs::create_dir(&place).with_context(|| format!("create {}", place.display()))?;
        Self::new("tmpfs", place, None)
    }

    /// Mounts a file system of FUSE that never answers; it has to be kept open. (The first
    /// request is the kernel's `FUSE_INIT`.)
    pub(super) fn silent(place: PathBuf) -> Result<(Self, File)> {
        let fuse = File::options().read(true).write(true).open("/dev/fuse")?;
        let fd = fuse.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        Ok((Self::new("fuse", place, Some(&options))?, fuse))
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
