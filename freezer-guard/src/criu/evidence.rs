//! The evidence of an image: a small file in its directory.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, INVENTORY, failed};
use crate::{
    guard::Status,
    words::{self, from_base64},
};

/// How good an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// CRIU has succeeded, and nobody has disturbed it.
    Good,
    /// CRIU has succeeded, somebody has disturbed it, and whoever made it has taken it
    /// all the same (`--on-violation warn`).
    Excused,
    /// Somebody has disturbed it, or has ended the guard: not to be trusted, whatever
    /// CRIU says.
    Violated,
    /// CRIU has failed.
    Failed,
}

impl Verdict {
    /// Whether the guard `held`, or a violation is `excused`; whether CRIU has
    /// `succeeded`.
    pub fn of(held: bool, excused: bool, succeeded: bool) -> Self {
        match (held, excused, succeeded) {
            (false, false, _) => Self::Violated,
            (_, _, false) => Self::Failed,
            (false, true, true) => Self::Excused,
            (true, _, true) => Self::Good,
        }
    }

    /// Whether its image gets its name.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Good | Self::Excused)
    }

    /// `good`
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Excused => "excused",
            Self::Violated => "violated",
            Self::Failed => "failed",
        }
    }
}

/// How an image came about: what was held, for how long, who tried to disturb it.
#[derive(Debug, Clone, Serialize)]
pub struct Evidence {
    /// How good it is.
    pub verdict: Verdict,
    /// The version of freezer-guard.
    pub freezer_guard: String,
    /// `uname -r`
    pub kernel: String,
    /// What CRIU says of its version.
    pub criu: String,
    /// CRIU's command line.
    pub command: Vec<String>,
    /// Its exit code, or 128 and the signal that ended it.
    pub exit_code: u8,
    /// The root of the tree.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// The cgroups that were guarded, by their paths on that host.
    #[serde(serialize_with = "words::texts")]
    pub cgroups: Vec<PathBuf>,
    /// Their paths in Base64, if one of them is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups_base64: Option<Vec<String>>,
    /// Whether it holds memory only, for a dump to build on.
    pub pre_dump: bool,
    /// Whether the root was there afterwards.
    pub left_running: bool,
    /// The image it builds on, seen from its directory.
    pub parent: Option<PathBuf>,
    /// The size of the memory in it, bytes.
    pub memory_bytes: u64,
    /// The size of the images, bytes.
    pub image_bytes: u64,
    /// The guard at its end; none when somebody has ended it before.
    pub guard: Option<Status>,
}

impl Evidence {
    /// The file's name.
    pub const FILE: &str = "freezer-guard.json";

    /// Puts it beside the images.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(Self::FILE);
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| failed("write", &path, error.into()))?;
        text.push('\n');
        fs::write(&path, text).map_err(|source| failed("write", &path, source))
    }
}

/// What of it is read back, from this and every other version.
#[derive(Debug, Clone, Deserialize)]
pub struct Known {
    /// How good it is.
    pub verdict: Verdict,
    /// The root of the tree.
    pub pid: i32,
    /// The cgroups that were guarded.
    pub cgroups: Vec<PathBuf>,
    /// See [`Evidence::cgroups_base64`].
    #[serde(default)]
    cgroups_base64: Option<Vec<String>>,
    /// Whether it holds memory only.
    pub pre_dump: bool,
}

impl Known {
    /// Reads the evidence of the images in a directory, and checks that they are good. Returns
    /// `None` for images of another program, which have no evidence.
    ///
    /// # Errors
    /// When there are no images, or they are not good.
    pub fn of_images(dir: &Path) -> Result<Option<Self>, Error> {
        if !dir.join(INVENTORY).exists() {
            return Err(Error::NoImages(dir.to_owned()));
        }
        let path = dir.join(Evidence::FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &path, source)),
        };
        let mut known: Self = serde_json::from_slice(&bytes)
            .map_err(|error| failed("understand", &path, error.into()))?;
        if let Some(exact) = &known.cgroups_base64 {
            known.cgroups = exact.iter().filter_map(|path| from_base64(path)).collect();
        }
        match known.verdict {
            Verdict::Good | Verdict::Excused => Ok(Some(known)),
            Verdict::Violated => Err(not_good(dir, "it was disturbed while it was made")),
            Verdict::Failed => Err(not_good(dir, "CRIU has failed to make it")),
        }
    }

    /// The same of images to restore.
    ///
    /// # Errors
    /// Also when they are those of a pre-dump.
    pub fn of_whole_images(dir: &Path) -> Result<Option<Self>, Error> {
        let known = Self::of_images(dir)?;
        match known.as_ref().is_some_and(|known| known.pre_dump) {
            true => Err(not_good(dir, "it is a pre-dump, which holds memory only")),
            false => Ok(known),
        }
    }
}

fn not_good(dir: &Path, why: &'static str) -> Error {
    Error::NotGood {
        path: dir.to_owned(),
        why,
    }
}
