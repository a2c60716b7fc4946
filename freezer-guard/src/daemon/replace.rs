//! Files that a reader sees whole or not at all.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// Whether a file has to be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    /// A crash of the host must not lose it.
    Yes,
    /// It is soon written again. While CRIU writes an image, this can take seconds.
    No,
}

/// Replaces a file. `mode`: its permissions. The new one never follows a link that somebody has
/// put into the directory.
///
/// # Errors
/// When the directory cannot be written, or the disk is full: then the old file stays.
pub(super) fn replace(path: &Path, mode: u32, bytes: &[u8], sync: Sync) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // The collector of metrics reads files with the suffix `.prom`.
    let mut file = tempfile::Builder::new().suffix(".new").tempfile_in(dir)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if sync == Sync::Yes {
        file.as_file().sync_all()?;
    }
    file.persist(path)?;
    Ok(())
}
