//! Files of a directory of images, which may come from anywhere.

use std::{
    fs::File,
    io::{self, BufRead, ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::fcntl::OFlag;

/// Opens a regular file. A FIFO of the same name cannot hang the reader, and a device that never
/// ends is refused.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

/// Reads a regular file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = open(path)?.take(limit + 1);
    match file.read_to_end(&mut bytes)? as u64 > limit {
        true => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("it has more than {limit} bytes"),
        )),
        false => Ok(bytes),
    }
}

/// How much of a line of a log is read, bytes.
pub(super) const LINE: u64 = 4096;
/// How much of a log is read, bytes.
pub(super) const LOG: u64 = 256 << 20;

/// Reads the beginning of the next line, without its end. Returns false at the end of the log.
pub(super) fn read_line(mut log: impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    if log.by_ref().take(LINE).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.pop_if(|last| *last == b'\n').is_none() {
        log.skip_until(b'\n')?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use crate::criu::{DumpStats, Record, Stages};

    const NAMES: [&str; 4] = [
        "freezer-guard.json",
        "freezer-guard.json.draft",
        "stats-dump",
        "dump.log",
    ];

    /// Each of them is read in no time, and is an error.
    fn expect_refused(make: impl Fn(&Path)) {
        for name in NAMES {
            let temp = tempfile::tempdir().expect("a folder");
            make(&temp.path().join(name));
            let is_read = match name {
                "stats-dump" => DumpStats::read(temp.path()).is_ok(),
                "dump.log" => Stages::read(&temp.path().join(name)).is_ok(),
                _ => Record::of_images(temp.path()).is_ok(),
            };
            assert!(!is_read, "{name}");
        }
    }

    #[test]
    fn a_fifo_hangs_no_reader() {
        expect_refused(|path| mkfifo(path, Mode::S_IRWXU).expect("a FIFO"));
    }

    #[test]
    fn a_device_is_not_read() {
        expect_refused(|path| symlink("/dev/zero", path).expect("a link"));
    }

    #[test]
    fn a_file_without_an_end_is_not_read_to_its_end() {
        for name in NAMES {
            let temp = tempfile::tempdir().expect("a folder");
            let path = temp.path().join(name);
            let file = fs::File::create(&path).expect("a file");
            file.set_len(1 << 40).expect("a sparse file");
            match name {
                "stats-dump" => assert!(DumpStats::read(temp.path()).is_err()),
                "dump.log" => assert!(Stages::read(&path).expect("a part").is_cut),
                _ => assert!(Record::of_images(temp.path()).is_err()),
            }
        }
    }
}
