//! A folder of images: it gets its name when they are complete and undisturbed.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{Error, Evidence, Verdict};

/// What CRIU writes last.
pub(super) const INVENTORY: &str = "inventory.img";

/// A folder that images are being written into, beside the place they are for. Nobody
/// finds anything in that place but good images, and what is there is never replaced.
#[derive(Debug)]
pub struct Images {
    place: PathBuf,
    folder: PathBuf,
    settled: bool,
}

impl Images {
    /// Makes the folder: for the place `/x/image` it is `/x/image.unfinished`, for
    /// root alone.
    ///
    /// # Errors
    /// When something is in that place, or no folder can be made beside it.
    pub fn create(place: &Path) -> Result<Self, Error> {
        match fs::read_dir(place).map(|mut entries| entries.next().is_none()) {
            // As `mktemp -d` leaves it.
            Ok(true) => {}
            Ok(false) => return Err(Error::Exists(place.to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(failed("use", place, source)),
        }
        let folder = first_free(place, "unfinished", |name| {
            DirBuilder::new().mode(0o700).create(name)
        })
        .map_err(|(name, source)| failed("create", &name, source))?;
        Ok(Self {
            place: place.to_owned(),
            folder,
            settled: false,
        })
    }

    /// Where they are being written.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of an image that this one builds on, as CRIU wants it: seen from the
    /// folder, which will be called otherwise and stay where it is.
    ///
    /// # Errors
    /// When there are no images in it, or they are not good.
    pub fn refer_to(&self, parent: &Path) -> Result<PathBuf, Error> {
        Evidence::of_images(parent)?;
        let real = |path: &Path| {
            path.canonicalize()
                .map_err(|source| failed("find", path, source))
        };
        let (parent, folder) = (real(parent)?, real(&self.folder)?);
        pathdiff::diff_paths(&parent, folder).ok_or(Error::NoImages(parent))
    }

    /// Whether CRIU has written them to the end.
    pub fn are_complete(&self) -> bool {
        self.folder.join(INVENTORY).exists()
    }

    /// How large its files with this beginning of their names are together, bytes.
    pub fn bytes(&self, prefix: &str) -> u64 {
        bytes(&self.folder, prefix)
    }

    /// Gives the folder the name it deserves, and returns that: good images have
    /// reached the disk, and get their place; others are left as `image.violated` or
    /// `image.failed`.
    ///
    /// # Errors
    /// When they cannot be written or the place was taken meanwhile: then they are
    /// where the error says.
    pub fn settle(mut self, verdict: Verdict) -> Result<PathBuf, Error> {
        self.settled = true;
        if matches!(verdict, Verdict::Violated | Verdict::Failed) {
            return self.set_aside(verdict);
        }
        sync(&self.folder)?;
        match fs::rename(&self.folder, &self.place) {
            Ok(()) => {}
            Err(source) => return Err(failed("give its name to", &self.folder, source)),
        }
        let parent = match self.place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        sync_one(parent)?;
        Ok(self.place.clone())
    }

    fn set_aside(&self, verdict: Verdict) -> Result<PathBuf, Error> {
        first_free(&self.place, verdict.name(), |name| {
            fs::rename(&self.folder, name)
        })
        .map_err(|(_, source)| failed("give a name to", &self.folder, source))
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        // On the way out of an error, which is what gets reported.
        if !self.settled && fs::remove_dir(&self.folder).is_err() {
            let _ = self.set_aside(Verdict::Failed);
        }
    }
}

/// How large the files in a folder with this beginning of their names are, bytes.
pub(super) fn bytes(folder: &Path, prefix: &str) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Makes `place.kind`, or `place.kind.2` and so on where that is taken.
fn first_free(
    place: &Path,
    kind: &str,
    make: impl Fn(&Path) -> io::Result<()>,
) -> Result<PathBuf, (PathBuf, io::Error)> {
    let Some(name) = place.file_name() else {
        let error = io::Error::new(ErrorKind::InvalidInput, "it has no name of its own");
        return Err((place.to_owned(), error));
    };
    let mut number = 1;
    loop {
        let mut taken: OsString = name.to_owned();
        taken.push(match number {
            1 => format!(".{kind}"),
            _ => format!(".{kind}.{number}"),
        });
        let path = place.with_file_name(taken);
        match make(&path) {
            Ok(()) => return Ok(path),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::AlreadyExists
                        | ErrorKind::DirectoryNotEmpty
                        | ErrorKind::NotADirectory
                ) && path.symlink_metadata().is_ok() =>
            {
                number += 1;
            }
            Err(error) => return Err((path, error)),
        }
    }
}

/// Waits until the files of a folder and their names are on the disk.
fn sync(folder: &Path) -> Result<(), Error> {
    let read = |source| failed("read", folder, source);
    for entry in fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.file_type().map_err(read)?.is_file() {
            sync_one(&entry.path())?;
        }
    }
    sync_one(folder)
}

fn sync_one(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| failed("sync", path, source))
}

pub(super) fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Error, Images, Verdict};

    #[test]
    fn only_good_images_get_their_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = dir.path().join("image");
        let dump = |verdict| {
            let images = Images::create(&place).expect("a folder for images");
            fs::write(images.folder().join("core-1.img"), "x").expect("an image");
            images.settle(verdict).expect("a name")
        };
        for number in ["", ".2"] {
            let name = |kind| format!("image.{kind}{number}");
            assert!(dump(Verdict::Failed).ends_with(name("failed")));
            assert!(dump(Verdict::Violated).ends_with(name("violated")));
            assert!(!place.exists());
        }
        assert_eq!(dump(Verdict::Good), place);
        assert!(matches!(Images::create(&place), Err(Error::Exists(_))));
        assert_eq!(fs::read_dir(dir.path()).expect("its entries").count(), 5);
    }

    #[test]
    fn what_takes_the_place_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = dir.path().join("image");
        let images = Images::create(&place).expect("a folder for images");
        let folder = images.folder().to_owned();
        fs::create_dir(&place).expect("another folder");
        fs::write(place.join("other"), "x").expect("another's file");
        images
            .settle(Verdict::Good)
            .expect_err("its place is taken");
        assert!(folder.exists() && place.join("other").exists());
    }

    #[test]
    fn an_empty_folder_is_a_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = dir.path().join("image");
        fs::create_dir(&place).expect("an empty folder");
        let images = Images::create(&place).expect("a folder for images");
        images.settle(Verdict::Good).expect("its place");
        drop(Images::create(&place).expect("still empty"));
        assert_eq!(fs::read_dir(dir.path()).expect("its entries").count(), 1);
    }
}
