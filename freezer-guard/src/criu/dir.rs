//! A directory of images, as files.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{Error, INVENTORY, failed};

/// The name of the evidence, with which that of its draft begins.
pub(super) const EVIDENCE: &str = "freezer-guard.json";

/// The name of the draft.
pub(super) const DRAFT: &str = "freezer-guard.json.draft";

/// The end of a directory's name while CRIU writes images into it.
pub(super) const UNFINISHED: &str = "unfinished";

/// The ends of its name after a violation, and after a failure.
pub(super) const VIOLATED: &str = "violated";
pub(super) const FAILED: &str = "failed";

/// Whether CRIU has written the images in a directory to the end.
pub fn are_complete(dir: &Path) -> bool {
    dir.join(INVENTORY).exists()
}

/// The directories in this one of the trees of one checkpoint, good or not.
pub(super) fn trees(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.map(|entry| entry.path());
    let is_of_tree = |dir: &PathBuf| {
        let files = [INVENTORY, EVIDENCE, DRAFT];
        files.into_iter().any(|file| dir.join(file).exists())
    };
    let mut trees: Vec<_> = dirs.filter(is_of_tree).collect();
    trees.sort();
    trees
}

/// Why a directory holds no image: it is that of several trees, or the checkpoint for this place has left
/// a directory of another name.
pub(super) fn why_no_image(dir: &Path) -> Error {
    let trees_here = trees(dir);
    if !trees_here.is_empty() {
        return Error::Several(dir.to_owned(), trees_here);
    }
    if dir.join(DRAFT).exists() {
        return Error::Interrupted(dir.to_owned());
    }
    let mut complete = left(dir, UNFINISHED);
    complete.retain(|dir| are_complete(dir) && dir.join(EVIDENCE).exists());
    if !complete.is_empty() {
        return Error::Unfinished(dir.to_owned(), complete);
    }
    let others = [VIOLATED, FAILED, UNFINISHED].map(|kind| left(dir, kind));
    if let Some(others) = others.into_iter().find(|others| !others.is_empty()) {
        return Error::OtherName(dir.to_owned(), others);
    }
    match fs::read_dir(dir) {
        Ok(_) => Error::NoImages(dir.to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Error::NoDirectory(dir.to_owned()),
        Err(source) => failed("read", dir, source),
    }
}

/// The directories of its trees, or itself if it is that of one.
fn parts(dir: &Path) -> Vec<PathBuf> {
    let trees = trees(dir);
    match trees.is_empty() {
        true => vec![dir.to_owned()],
        false => trees,
    }
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

/// The directories of the trees that checkpoints for this place have left as `place.kind`, `place.kind.2`
/// and so on.
fn left(place: &Path, kind: &str) -> Vec<PathBuf> {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(kind);
    let is_meant = |path: &PathBuf| {
        let found = path.file_name().unwrap_or_default().as_bytes();
        let number = found.strip_prefix(name.as_bytes());
        number.is_some_and(|number| match number.strip_prefix(b".") {
            Some(number) => number.iter().all(u8::is_ascii_digit),
            None => number.is_empty(),
        })
    };
    let dir = place.parent().filter(|dir| !dir.as_os_str().is_empty());
    let entries = fs::read_dir(dir.unwrap_or(Path::new("."))).into_iter();
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    let mut dirs: Vec<_> = paths
        .filter(is_meant)
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    dirs.iter().flat_map(|dir| parts(dir)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_complete_leftover_is_named_whichever_it_is() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("image");
        for name in [
            "image.unfinished",
            "image.unfinished.2",
            "image.unfinished.old",
        ] {
            fs::create_dir(temp.path().join(name)).expect("a folder");
        }
        let why = why_no_image(&place);
        let both = ["image.unfinished", "image.unfinished.2"].map(|name| temp.path().join(name));
        assert!(
            matches!(&why, Error::OtherName(_, left) if *left == both),
            "{why}"
        );
        for file in [INVENTORY, EVIDENCE] {
            fs::write(both[1].join(file), "x").expect("a file");
        }
        let why = why_no_image(&place);
        assert!(
            matches!(&why, Error::Unfinished(_, left) if *left == both[1..]),
            "{why}"
        );
    }
}
