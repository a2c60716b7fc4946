//! The file that a report or a bundle is written into.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Write as _},
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        },
    },
    path::Path,
};

/// Writes to standard output.
pub(super) fn print(bytes: &[u8]) -> io::Result<()> {
    match io::stdout().write_all(bytes) {
        // The reader has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Makes a file, or replaces it. The target of a link is never changed, unless it is a pipe or a
/// character device, or is standard output itself: `/dev/stdout` is a link too.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => replace(path, None, bytes),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_file() => replace(path, Some(metadata.permissions()), bytes),
        Ok(_) if is_stdout(path)? => print(bytes),
        Ok(_) => into_special(path, bytes),
    }
}

/// Returns an error if [`create`] does not make such a file: the name is taken, be it by a link, a pipe
/// or a device, or there is no directory for it.
pub(super) fn expect_new(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(_) => {
            let why = "it exists: name a new file, or `-` for standard output";
            return Err(io::Error::new(ErrorKind::AlreadyExists, why));
        }
    }
    let dir = dir_of(path);
    match fs::metadata(dir) {
        Ok(metadata) if !metadata.is_dir() => Err(ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let why = format!("there is no directory {}", dir.display());
            Err(io::Error::new(ErrorKind::NotFound, why))
        }
        Err(error) => Err(error),
        Ok(_) if path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/") => {
            let why = "it is not the name of a file";
            Err(io::Error::new(ErrorKind::InvalidInput, why))
        }
        Ok(_) => Ok(()),
    }
}

/// Makes a file that nobody but its owner can read. It replaces nothing and follows no link.
pub(super) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    expect_new(path)?;
    let mut file = tempfile::Builder::new().tempfile_in(dir_of(path))?;
    file.write_all(bytes)?;
    file.persist_noclobber(path)?;
    Ok(())
}

/// Returns whether this is standard output.
fn is_stdout(path: &Path) -> io::Result<bool> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?).metadata()?;
    let of_path = fs::metadata(path);
    Ok(of_path.is_ok_and(|file| (file.dev(), file.ino()) == (stdout.dev(), stdout.ino())))
}

/// Writes a new file beside it and renames that. `permissions`: those of the old file.
fn replace(path: &Path, permissions: Option<Permissions>, bytes: &[u8]) -> io::Result<()> {
    // The umask of the user takes from these.
    let new = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .permissions(new)
        .tempfile_in(dir_of(path))?;
    if let Some(permissions) = permissions {
        file.as_file().set_permissions(permissions)?;
    }
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Writes into a pipe or a character device.
fn into_special(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let refused = |why| Err(io::Error::new(ErrorKind::InvalidInput, why));
    const LINK: &str = "it is a symbolic link to a file: name the file itself";
    const DISK: &str = "it is a block device: name a file";
    // To open a disk for writing has effects of its own.
    let named = fs::metadata(path);
    if named.is_ok_and(|file| file.file_type().is_block_device()) {
        return refused(DISK);
    }
    let mut file = match File::options().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return refused(LINK),
        opened => opened?,
    };
    let kind = file.metadata()?.file_type();
    match kind.is_fifo() || kind.is_char_device() {
        true => file.write_all(bytes),
        false if kind.is_block_device() => refused(DISK),
        false => refused(LINK),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
        path::Path,
    };

    use super::{create, write};

    #[test]
    fn the_target_of_a_link_is_not_changed() {
        let temp = tempfile::tempdir().expect("a folder");
        let (target, link) = (temp.path().join("target"), temp.path().join("link"));
        symlink(&target, &link).expect("a link");
        write(&link, b"new").expect_err("a link to nothing");
        assert!(!target.exists());
        fs::write(&target, "old").expect("a file");
        write(&link, b"new").expect_err("a link to a file");
        assert_eq!(fs::read(&target).expect("the old one"), b"old");
    }

    #[test]
    fn a_file_is_replaced_by_another_one() {
        let temp = tempfile::tempdir().expect("a folder");
        let (file, other) = (temp.path().join("file"), temp.path().join("other"));
        write(&file, b"old").expect("a new file");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("permissions");
        fs::hard_link(&file, &other).expect("a second name");
        write(&file, b"new").expect("another file");
        assert_eq!(fs::read(&file).expect("the new one"), b"new");
        assert_eq!(fs::read(&other).expect("the old one"), b"old");
        let mode = fs::metadata(&file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(fs::read_dir(temp.path()).expect("a folder").count(), 2);
    }

    #[test]
    fn a_new_file_is_private_and_replaces_none() {
        let temp = tempfile::tempdir().expect("a folder");
        let (file, link) = (temp.path().join("file"), temp.path().join("link"));
        create(&file, b"first").expect("a new file");
        let mode = fs::metadata(&file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        create(&file, b"second").expect_err("it is there");
        assert_eq!(fs::read(&file).expect("the first one"), b"first");
        symlink(temp.path().join("target"), &link).expect("a link");
        create(&link, b"third").expect_err("a link to nothing");
        create(Path::new("/dev/null"), b"x").expect_err("a device");
        assert_eq!(fs::read_dir(temp.path()).expect("a folder").count(), 2);
    }

    #[test]
    fn a_device_is_written_to() {
        write(Path::new("/dev/null"), b"x").expect("a device");
        let temp = tempfile::tempdir().expect("a folder");
        let link = temp.path().join("link");
        symlink("/dev/null", &link).expect("a link");
        write(&link, b"x").expect("a link to a device");
        assert!(link.is_symlink());
        write(temp.path(), b"x").expect_err("a folder");
    }
}
