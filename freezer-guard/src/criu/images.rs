//! A directory of images: it gets its name when they are complete and undisturbed.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{Draft, Error, Known, Verdict, dir, failed};

/// In a directory of images that another one was begun on: see [`Images::refer_to`].
const SPENT: &str = "freezer-guard.spent";

/// A directory that images are being written into, beside the place they are for. Nobody
/// finds anything in that place but good images, and what is there is never replaced.
#[derive(Debug)]
pub struct Images {
    place: PathBuf,
    dir: PathBuf,
    /// The directories of several trees in it.
    trees: Vec<PathBuf>,
    spent: Vec<PathBuf>,
    published: bool,
}

impl Images {
    /// Makes the directory: for the place `/x/image` it is `/x/image.unfinished`, for
    /// root alone.
    ///
    /// # Errors
    /// When something is in that place, or no directory can be made beside it.
    pub fn create(place: &Path) -> Result<Self, Error> {
        let using = |source| failed("use", place, source);
        // A link is to lead there at the end too.
        let place = match place.symlink_metadata() {
            Ok(_) => place.canonicalize().map_err(using)?,
            Err(error) if error.kind() == ErrorKind::NotFound => place.to_owned(),
            Err(source) => return Err(using(source)),
        };
        match fs::read_dir(&place).map(|mut entries| entries.next().is_none()) {
            // As `mktemp -d` leaves it.
            Ok(true) => {
                let device = |path: &Path| Ok(fs::metadata(path)?.dev());
                if device(&place).map_err(using)? != device(parent_of(&place)).map_err(using)? {
                    return Err(Error::MountPoint(place));
                }
            }
            Ok(false) => return Err(Error::Exists(place)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(using(source)),
        }
        let parent = parent_of(&place);
        if !parent.exists() {
            return Err(Error::NoDirectory(parent.to_owned()));
        }
        let dir = first_free(&place, dir::UNFINISHED, |name| {
            DirBuilder::new().mode(0o700).create(name)
        })
        .map_err(|(name, source)| failed("create", &name, source))?;
        Ok(Self {
            place,
            dir,
            trees: Vec::new(),
            spent: Vec::new(),
            published: false,
        })
    }

    /// Where they are being written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a directory in it for one of several trees.
    ///
    /// # Errors
    /// When that cannot be made.
    pub fn add(&mut self, name: &OsStr) -> Result<PathBuf, Error> {
        let dir = self.dir.join(name);
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|source| failed("create", &dir, source))?;
        self.trees.push(dir.clone());
        Ok(dir)
    }

    /// The path of an image of the tree below `root` that the one in `dir` builds on, as CRIU
    /// wants it: seen from that directory, which will be called otherwise and stay where it
    /// is.
    ///
    /// CRIU writes the pages that have changed since the kernel's marks were cleared, and
    /// clears them. So whatever comes of it, nothing else can build on that image.
    ///
    /// # Errors
    /// When there are no images in it, they are not good or of another tree, or
    /// something was begun on them before.
    pub fn refer_to(&mut self, dir: &Path, parent: &Path, root: i32) -> Result<PathBuf, Error> {
        if let Some(known) = Known::of_images(parent)?
            && known.pid != root
        {
            return Err(Error::OtherTree {
                path: parent.to_owned(),
                found: known.pid,
                wanted: root,
            });
        }
        let real = |path: &Path| {
            path.canonicalize()
                .map_err(|source| failed("find", path, source))
        };
        let spent = parent.join(SPENT);
        match File::create_new(&spent) {
            Ok(_) => self.spent.push(spent),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::Spent(parent.to_owned()));
            }
            Err(source) => return Err(failed("create", &spent, source)),
        }
        let (parent, dir) = (real(parent)?, real(dir)?);
        pathdiff::diff_paths(&parent, dir).ok_or(Error::NoImages(parent))
    }

    /// Gives the directory the name it deserves, and returns that: usable images, which have
    /// reached the disk, get their place; others are left as `image.violated` or
    /// `image.failed`.
    ///
    /// # Errors
    /// When they cannot be written or the place was taken meanwhile: then they are
    /// where the error says.
    pub fn publish(mut self, verdict: Verdict) -> Result<PathBuf, Error> {
        self.published = true;
        if !verdict.is_usable() {
            return self.set_aside(verdict);
        }
        dir::sync_one(&self.dir)?;
        fs::rename(&self.dir, &self.place)
            .map_err(|source| failed("give its name to", &self.dir, source))?;
        dir::sync_one(parent_of(&self.place))?;
        Ok(self.place.clone())
    }

    /// Leaves the directory as it is, and returns it.
    pub fn keep(mut self) -> PathBuf {
        self.published = true;
        self.dir.clone()
    }

    /// Removes the directory if it is empty, because CRIU may not have started. Otherwise it
    /// becomes DIR.failed, and this returns that path.
    ///
    /// # Errors
    /// When it can get no name.
    pub fn abandon(mut self) -> Result<Option<PathBuf>, Error> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<Option<PathBuf>, Error> {
        self.published = true;
        // Without the drafts the directories are empty, if CRIU has not started.
        for tree in &self.trees {
            let _ = fs::remove_file(tree.join(Draft::FILE));
            let _ = fs::remove_dir(tree);
        }
        let _ = fs::remove_file(self.dir.join(Draft::FILE));
        if fs::remove_dir(&self.dir).is_err() {
            return self.set_aside(Verdict::Failed).map(Some);
        }
        for spent in &self.spent {
            // CRIU has not begun, so it is as it was; at worst it is used no more.
            let _ = fs::remove_file(spent);
        }
        Ok(None)
    }

    fn set_aside(&self, verdict: Verdict) -> Result<PathBuf, Error> {
        first_free(&self.place, verdict.name(), |name| {
            fs::rename(&self.dir, name)
        })
        .map_err(|(_, source)| failed("give a name to", &self.dir, source))
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if !self.published {
            // On the way out of an error, which is what gets reported.
            let _ = self.give_up();
        }
    }
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

/// The directory that a path is in.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Draft, Error, Images, Known, Verdict};

    #[test]
    fn only_good_images_get_their_place() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("image");
        let dump = |verdict| {
            let images = Images::create(&place).expect("a folder for images");
            fs::write(images.dir().join("core-1.img"), "x").expect("an image");
            images.publish(verdict).expect("a name")
        };
        for number in ["", ".2"] {
            let name = |kind| format!("image.{kind}{number}");
            assert!(dump(Verdict::Failed).ends_with(name("failed")));
            assert!(dump(Verdict::Violated).ends_with(name("violated")));
            assert!(!place.exists());
        }
        assert_eq!(dump(Verdict::Good), place);
        assert!(matches!(Images::create(&place), Err(Error::Exists(_))));
        assert_eq!(fs::read_dir(temp.path()).expect("its entries").count(), 5);
    }

    #[test]
    fn what_takes_the_place_meanwhile_is_not_replaced() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("image");
        let images = Images::create(&place).expect("a folder for images");
        let dir = images.dir().to_owned();
        fs::create_dir(&place).expect("another folder");
        fs::write(place.join("other"), "x").expect("another's file");
        images
            .publish(Verdict::Good)
            .expect_err("its place is taken");
        assert!(dir.exists() && place.join("other").exists());
    }

    #[test]
    fn one_image_is_built_on_another_once() {
        let temp = tempfile::tempdir().expect("a folder");
        let parent = temp.path().join("parent");
        fs::create_dir(&parent).expect("a folder");
        fs::write(parent.join("inventory.img"), "").expect("an image");
        let begin = || Images::create(&temp.path().join("image")).expect("a folder for images");
        let refer = |images: &mut Images| {
            let dir = images.dir().to_owned();
            images.refer_to(&dir, &parent, 1)
        };
        let mut unused = begin();
        let path = refer(&mut unused).expect("a path");
        assert!(path.ends_with("../parent"));
        drop(unused);
        let mut used = begin();
        refer(&mut used).expect("CRIU did not begin before");
        fs::write(used.dir().join("dump.log"), "").expect("a log");
        used.publish(Verdict::Failed).expect("a name");
        assert!(matches!(refer(&mut begin()), Err(Error::Spent(_))));
    }

    #[test]
    fn images_of_several_trees_get_their_place_at_once() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("image");
        let mut images = Images::create(&place).expect("a folder for images");
        for name in ["one", "other"] {
            let dir = images.add(name.as_ref()).expect("a folder");
            fs::write(dir.join(Draft::FILE), "x").expect("a draft");
        }
        images.add("one".as_ref()).expect_err("its name is taken");
        // CRIU has not started.
        assert_eq!(images.abandon().expect("it goes"), None);
        let mut images = Images::create(&place).expect("a folder for images");
        for name in ["one", "other"] {
            let dir = images.add(name.as_ref()).expect("a folder");
            fs::write(dir.join("inventory.img"), "x").expect("an image");
        }
        images.publish(Verdict::Good).expect("its place");
        assert!(place.join("one").exists() && place.join("other").exists());
        let several = Known::of_images(&place);
        let Err(Error::Several(_, trees)) = several else {
            panic!("{several:?}");
        };
        assert_eq!(trees.len(), 2);
    }

    #[test]
    fn a_link_leads_to_its_place() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("place");
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&place, &link).expect("a link");
        Images::create(&link).expect_err("it leads nowhere");
        fs::create_dir(&place).expect("an empty folder");
        let images = Images::create(&link).expect("a folder for images");
        assert_eq!(
            images.publish(Verdict::Good).expect("its place"),
            place.canonicalize().expect("it is there")
        );
    }

    #[test]
    fn an_empty_folder_is_a_place() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("image");
        fs::create_dir(&place).expect("an empty folder");
        let images = Images::create(&place).expect("a folder for images");
        images.publish(Verdict::Good).expect("its place");
        drop(Images::create(&place).expect("still empty"));
        assert_eq!(fs::read_dir(temp.path()).expect("its entries").count(), 1);
    }
}
