//! Files that a reader sees whole or not at all.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use tempfile::NamedTempFile;

/// Replaces a file that is soon replaced again. `mode`: its permissions. The new one never follows a link
/// that somebody has put into the directory. This does not wait for the disk, which takes seconds
/// while CRIU writes an image.
///
/// # Errors
/// When the directory cannot be written, or the disk is full: then the old file stays.
pub(super) fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    made(path, mode, bytes)?.persist(path)?;
    Ok(())
}

/// The same for a file that a crash of the host must not lose.
///
/// # Errors
/// See [`replace`].
pub(super) fn replace_on_disk(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let file = made(path, mode, bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn made(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // The collector of metrics reads files with the suffix `.prom`.
    let mut file = tempfile::Builder::new().suffix(".new").tempfile_in(dir)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    Ok(file)
}
