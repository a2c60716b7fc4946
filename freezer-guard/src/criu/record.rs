//! The evidence of an image as a reader finds it: of this version or another.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Error, Verdict, are_complete, dir, failed, file};
use crate::guard::Status;

/// The size of evidence at most, bytes: it has some dozens of KiB.
const LONGEST: u64 = 4 << 20;

/// What the evidence says. A field that its version did not have is empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The version of its format: see [`VERSION`](crate::json::VERSION).
    pub version: Option<u32>,
    /// How good the image is; `None` while the checkpoint goes on, or if it was interrupted.
    pub verdict: Option<Verdict>,
    /// The version of freezer-guard.
    pub freezer_guard: String,
    /// `uname -r`
    pub kernel: String,
    /// What CRIU says of its version.
    pub criu: String,
    /// CRIU's command line.
    pub command: Vec<String>,
    /// Its exit code.
    pub exit_code: Option<u8>,
    /// The root of the tree.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// The cgroups that were guarded.
    pub cgroups: Vec<PathBuf>,
    /// Whether the image holds memory only.
    pub pre_dump: bool,
    /// Whether the root was there afterwards.
    pub left_running: bool,
    /// The size of the memory in the image, bytes.
    pub memory_bytes: u64,
    /// The size of the images, bytes.
    pub image_bytes: u64,
    /// When CRIU was started.
    pub started: Option<String>,
    /// When CRIU began its log.
    pub log_begun: Option<String>,
    /// When CRIU had ended.
    pub ended: Option<String>,
    /// The guard at its end.
    guard: Guarded,
}

/// The guard in the evidence.
#[derive(Debug, Clone, Default)]
enum Guarded {
    #[default]
    None,
    /// One that this version does not understand.
    Foreign,
    Known(Box<Status>),
}

impl<'de> Deserialize<'de> for Guarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Value::deserialize(deserializer)? {
            Value::Null => Self::None,
            value => match Status::deserialize(value) {
                Ok(status) => Self::Known(Box::new(status)),
                Err(_) => Self::Foreign,
            },
        })
    }
}

/// The evidence before CRIU has ended: see [`Draft`](super::Draft).
#[derive(Deserialize)]
struct Unfinished {
    evidence: Record,
}

impl Record {
    /// Reads the evidence of the images in a directory, be they good or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_images(dir: &Path) -> Result<Self, Error> {
        if let Some(record) = read(&dir.join(dir::EVIDENCE))? {
            return Ok(record);
        }
        if let Some(Unfinished { evidence }) = read(&dir.join(dir::DRAFT))? {
            return Ok(Self {
                verdict: None,
                exit_code: None,
                ..evidence
            });
        }
        Err(match are_complete(dir) {
            true => Error::NoEvidence(dir.to_owned()),
            false => dir::why_no_image(dir),
        })
    }

    /// The guard, if there is one and this version understands it.
    pub fn guard(&self) -> Option<&Status> {
        match &self.guard {
            Guarded::Known(status) => Some(status),
            Guarded::None | Guarded::Foreign => None,
        }
    }

    /// Whether the evidence has a guard, also one that this version does not understand.
    pub fn has_guard(&self) -> bool {
        !matches!(self.guard, Guarded::None)
    }

    /// Whether the evidence has a guard that this version does not understand.
    pub fn has_foreign_guard(&self) -> bool {
        matches!(self.guard, Guarded::Foreign)
    }
}

/// Reads a file, if it is there.
fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, Error> {
    let understand = |error: serde_json::Error| failed("understand", path, error.into());
    match file::read(path, LONGEST) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(understand),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(source) => Err(failed("read", path, source)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Error, Record};
    use crate::criu::{
        INVENTORY, Known, Verdict,
        dir::{DRAFT, EVIDENCE},
    };

    #[test]
    fn an_image_that_is_not_good_has_a_record() {
        let temp = tempfile::tempdir().expect("a folder");
        let text = r#"{"verdict":"violated","pid":7,"guard":{"id":"of another version"}}"#;
        fs::write(temp.path().join("freezer-guard.json"), text).expect("a file");
        let record = Record::of_images(temp.path()).expect("a record");
        assert_eq!((record.verdict, record.pid), (Some(Verdict::Violated), 7));
        assert!(record.has_foreign_guard() && record.guard().is_none());
    }

    #[test]
    fn an_interrupted_checkpoint_has_no_verdict() {
        let temp = tempfile::tempdir().expect("a folder");
        let text = r#"{"excuses":false,"evidence":{"verdict":"failed","pid":7}}   "#;
        fs::write(temp.path().join("freezer-guard.json.draft"), text).expect("a file");
        let record = Record::of_images(temp.path()).expect("a record");
        assert_eq!((record.verdict, record.pid), (None, 7));
    }

    #[test]
    fn an_image_of_another_program_has_none() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("image");
        let found = || Record::of_images(&place).expect_err("no record");
        assert!(matches!(found(), Error::NoDirectory(_)));
        fs::create_dir(&place).expect("a folder");
        assert!(matches!(found(), Error::NoImages(_)));
        fs::write(place.join("inventory.img"), "x").expect("an image");
        assert!(matches!(found(), Error::NoEvidence(_)));
    }

    #[test]
    fn the_place_of_a_violated_image_leads_to_it() {
        let temp = tempfile::tempdir().expect("a folder");
        let violated = temp.path().join("image.violated");
        fs::create_dir(&violated).expect("a folder");
        match Record::of_images(&temp.path().join("image")) {
            Err(Error::OtherName(_, other)) => assert_eq!(other, [violated]),
            other => panic!("{other:?}"),
        }
    }

    /// Makes a directory with these files.
    fn make(dir: &Path, files: &[&str]) {
        fs::create_dir_all(dir).expect("a folder");
        for file in files {
            fs::write(dir.join(file), "{}").expect("a file");
        }
    }

    /// What `restore` and `report` say of a place. They look at it in the same way.
    fn said(place: &Path) -> String {
        let restore = Known::of_images(place).expect_err("no image").to_string();
        let report = Record::of_images(place).expect_err("no record").to_string();
        assert_eq!(restore, report);
        restore
    }

    #[test]
    fn the_leftovers_of_one_tree_and_of_several_are_named() {
        for kind in ["unfinished", "failed", "violated"] {
            for trees in [&[""][..], &["/db", "/web"]] {
                let temp = tempfile::tempdir().expect("a folder");
                let place = temp.path().join("image");
                let left = |tree| format!("{}.{kind}{tree}", place.display());
                for tree in trees {
                    let file = if kind == "unfinished" {
                        DRAFT
                    } else {
                        EVIDENCE
                    };
                    make(left(tree).as_ref(), &[file]);
                }
                let all: Vec<_> = trees.iter().map(left).collect();
                let all = all.join(" and ");
                let text = said(&place);
                assert!(text.contains(&format!("has left {all}: ")), "{text}");
                // An empty directory is as good as none.
                make(&place, &[]);
                assert_eq!(said(&place), text);
            }
        }
    }

    #[test]
    fn an_interrupted_checkpoint_of_several_leads_to_its_trees() {
        let temp = tempfile::tempdir().expect("a folder");
        let place = temp.path().join("image");
        let dir = temp.path().join("image.unfinished");
        make(&dir.join("db"), &[DRAFT]);
        make(&dir.join("web"), &[DRAFT, "core-1.img"]);
        let text = said(&dir);
        assert!(text.contains("db") && text.contains("web"), "{text}");
        let interrupted = Known::of_images(&dir.join("db"));
        assert!(
            matches!(interrupted, Err(Error::Interrupted(_))),
            "{interrupted:?}"
        );
        // The images were complete when it was killed.
        for tree in ["db", "web"] {
            make(&dir.join(tree), &[INVENTORY, EVIDENCE]);
        }
        let text = said(&place);
        let both = format!("{0}/db and {0}/web", dir.display());
        assert!(text.contains(&format!("has left {both}, ")), "{text}");
        assert!(text.contains("restore"), "{text}");
    }
}
