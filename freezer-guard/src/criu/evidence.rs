//! The evidence of an image: a small file in its directory.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Error,
    dir::{self, are_complete, bytes, sync_one},
    failed,
};
use crate::{
    guard::Status,
    json::{self, Versioned},
    words::{self, from_base64},
};

/// The verdict on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ImageVerdict")]
pub enum Verdict {
    /// CRIU has succeeded, and no process has disturbed the checkpoint.
    Good,
    /// CRIU has succeeded although a process has disturbed the checkpoint, and `--on-violation warn`
    /// accepts that.
    Excused,
    /// A process has disturbed the checkpoint or ended the guard. Do not trust the image, even if
    /// CRIU has succeeded.
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
            Self::Violated => dir::VIOLATED,
            Self::Failed => dir::FAILED,
        }
    }
}

/// The evidence of an image: the verdict, the guard and the processes that tried to disturb it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Evidence {
    /// The verdict on the image.
    pub verdict: Verdict,
    /// The version of freezer-guard that made the image.
    pub freezer_guard: String,
    /// The release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// The version that CRIU reports.
    pub criu: String,
    /// CRIU's command line, one word each.
    pub command: Vec<String>,
    /// The exit code of CRIU, or 128+N if signal N ended it.
    pub exit_code: u8,
    /// The pid of the root of the tree.
    pub pid: i32,
    /// The name of that process (`comm`).
    pub comm: String,
    /// The paths of the guarded cgroups on that host.
    #[serde(serialize_with = "words::texts")]
    pub cgroups: Vec<PathBuf>,
    /// The paths in Base64, if one of them is not valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups_base64: Option<Vec<String>>,
    /// Whether the image is a pre-dump: it has memory only, and a dump builds on it.
    pub pre_dump: bool,
    /// Whether the root of the tree was still running afterwards.
    pub left_running: bool,
    /// The image that this image builds on, relative to its directory, or null.
    pub parent: Option<PathBuf>,
    /// The size of the memory in the image, in bytes.
    pub memory_bytes: u64,
    /// The size of the whole image, in bytes.
    pub image_bytes: u64,
    /// The time when CRIU was started (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// The time when CRIU began its log (RFC 3339, UTC). The times in the log count from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_begun: Option<String>,
    /// The time when CRIU had ended (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The guard at its end, or null if a process has ended it before.
    pub guard: Option<Status>,
}

impl Evidence {
    /// The file's name.
    pub const FILE: &str = dir::EVIDENCE;

    /// Puts it beside the images, and waits until it is on the disk. Evidence that is there already
    /// stays if this fails.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        put(dir, self)
    }

    /// Removes it from beside the images, for which no disk is too full.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(dir: &Path) -> Result<(), Error> {
        let path = dir.join(Self::FILE);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &path, source))
            }
            _ => Ok(()),
        }
    }
}

/// The evidence before CRIU starts, which CRIU's action script completes before CRIU may end the
/// tree. So whatever happens to `checkpoint` later, the image has its evidence. The file takes its
/// room on the disk at the start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Draft {
    /// Whether a violation is only to be told.
    pub excuses: bool,
    /// Whether it is one of several trees, whose checkpoints succeed together or not at all.
    #[serde(default)]
    pub is_one_of_several: bool,
    /// Whether the images are complete, and CRIU was told to fail because that of another tree did.
    #[serde(default)]
    pub has_another_failed: bool,
    /// An [`Evidence`], of this same version.
    evidence: Value,
}

impl Draft {
    pub(super) const FILE: &str = dir::DRAFT;
    /// Its size, bytes: room for the guard's refusals.
    const BYTES: usize = 64 * 1024;

    /// Puts it into a directory for images.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        dir: &Path,
        evidence: &Evidence,
        excuses: bool,
        is_one_of_several: bool,
    ) -> Result<(), Error> {
        let path = dir.join(Self::FILE);
        let failed = |source| failed("write", &path, source);
        let evidence = serde_json::to_value(evidence).map_err(|error| failed(error.into()))?;
        let draft = Self {
            excuses,
            is_one_of_several,
            has_another_failed: false,
            evidence,
        };
        let mut file = File::create_new(&path).map_err(failed)?;
        draft.fill(&mut file).map_err(failed)
    }

    /// Records that another tree has failed, for the one that has started CRIU: it does not see the output
    /// of an action script.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn give_way(&mut self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(Self::FILE);
        self.has_another_failed = true;
        let file = File::options().write(true).open(&path);
        file.and_then(|mut file| self.fill(&mut file))
            .map_err(|source| failed("write", &path, source))
    }

    /// Writes it over what is in the file.
    fn fill(&self, file: &mut File) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.resize(text.len().max(Self::BYTES), b' ');
        file.write_all(&text)?;
        // An earlier text may have been longer.
        file.set_len(text.len() as u64)?;
        file.sync_all()
    }

    /// Reads it from a directory of images.
    ///
    /// # Errors
    /// When it is not there, or is none.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(Self::FILE);
        let bytes = fs::read(&path).map_err(|source| failed("read", &path, source))?;
        serde_json::from_slice(&bytes).map_err(|error| failed("understand", &path, error.into()))
    }

    /// Makes it the evidence of images that are complete, with the guard as it is now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn complete(&mut self, dir: &Path, guard: &Status) -> Result<(), Error> {
        let excused = guard.violation_count() > 0;
        let verdict = Verdict::of(!excused, self.excuses, true);
        let failed = |error: serde_json::Error| failed("complete", dir, error.into());
        self.evidence["verdict"] = serde_json::to_value(verdict).map_err(failed)?;
        self.evidence["guard"] = serde_json::to_value(guard).map_err(failed)?;
        self.evidence["memory_bytes"] = bytes(dir, "pages-").into();
        self.evidence["image_bytes"] = bytes(dir, "").into();
        put(dir, &self.evidence)
    }
}

/// Writes evidence into the room of the draft, if that is there, and gives it its name.
fn put(dir: &Path, evidence: &impl Serialize) -> Result<(), Error> {
    let evidence = &Versioned::new(evidence);
    let (draft, path) = (dir.join(Draft::FILE), dir.join(Evidence::FILE));
    let failed = |source| failed("write", &path, source);
    let mut text = serde_json::to_string_pretty(evidence).map_err(|error| failed(error.into()))?;
    text.push('\n');
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        file.sync_all()?;
        fs::rename(&draft, &path)
    };
    write().map_err(|error| {
        if path.exists() {
            // The evidence that is there stays.
            let _ = fs::remove_file(&draft);
        }
        failed(error)
    })?;
    sync_one(dir)
}

/// What of it is read back, from this and every other version.
#[derive(Debug, Clone, Deserialize)]
pub struct Known {
    /// The version of its format; the first one had none.
    #[serde(default)]
    version: u32,
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
        if !are_complete(dir) {
            return Err(dir::why_no_image(dir));
        }
        let path = dir.join(Evidence::FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return match dir.join(Draft::FILE).exists() {
                    true => Err(not_good(
                        dir,
                        "its checkpoint was interrupted or still runs",
                    )),
                    false => Ok(None),
                };
            }
            Err(source) => return Err(failed("read", &path, source)),
        };
        let mut known: Self = serde_json::from_slice(&bytes)
            .map_err(|error| failed("understand", &path, error.into()))?;
        if known.version > json::VERSION {
            return Err(Error::Newer(path));
        }
        if let Some(exact) = &known.cgroups_base64 {
            known.cgroups = exact.iter().filter_map(|path| from_base64(path)).collect();
        }
        match known.verdict {
            Verdict::Good | Verdict::Excused => Ok(Some(known)),
            Verdict::Violated => Err(not_good(dir, "another process disturbed its checkpoint")),
            Verdict::Failed => Err(not_good(dir, "CRIU failed")),
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

#[cfg(test)]
mod tests {
    use super::{super::INVENTORY, *};

    /// The evidence of an image as version 0.1.0 wrote it, but for its guard.
    const OLD: &str = r#"{
        "verdict": "good", "freezer_guard": "0.1.0 (BPF object 0)", "kernel": "6.12.0",
        "criu": "Version: 4.1", "command": ["criu", "dump"], "exit_code": 0, "pid": 12,
        "comm": "app", "cgroups": ["/sys/fs/cgroup/app"], "pre_dump": false,
        "left_running": true, "parent": null, "memory_bytes": 4096, "image_bytes": 8192,
        "guard": null
    }"#;

    fn images() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(INVENTORY), "x").expect("an image");
        dir
    }

    #[test]
    fn evidence_without_a_version_is_read() {
        let dir = images();
        fs::write(dir.path().join(Evidence::FILE), OLD).expect("evidence");
        let known = Known::of_whole_images(dir.path()).expect("it is good");
        let known = known.expect("there is evidence");
        assert_eq!((known.pid, known.verdict), (12, Verdict::Good));
    }

    #[test]
    fn a_long_draft_can_give_way() {
        let dir = images();
        let mut draft = Draft {
            excuses: false,
            is_one_of_several: true,
            has_another_failed: false,
            evidence: "x".repeat(2 * Draft::BYTES).into(),
        };
        let mut file = File::create_new(dir.path().join(Draft::FILE)).expect("a file");
        draft.fill(&mut file).expect("it is written");
        draft.give_way(dir.path()).expect("it is written again");
        assert!(Draft::read(dir.path()).expect("a draft").has_another_failed);
    }

    #[test]
    fn evidence_of_a_later_version_is_refused() {
        let dir = images();
        let later = OLD.replacen('{', r#"{"version": 2,"#, 1);
        fs::write(dir.path().join(Evidence::FILE), later).expect("evidence");
        let refused = Known::of_whole_images(dir.path());
        assert!(matches!(refused, Err(Error::Newer(_))), "{refused:?}");
    }

    #[test]
    fn evidence_has_its_version_also_if_it_is_completed() {
        let evidence = Evidence {
            verdict: Verdict::Good,
            freezer_guard: "0.1.0".to_owned(),
            kernel: String::new(),
            criu: String::new(),
            command: Vec::new(),
            exit_code: 0,
            pid: 12,
            comm: String::new(),
            cgroups: vec!["/sys/fs/cgroup/app".into()],
            cgroups_base64: None,
            pre_dump: false,
            left_running: true,
            parent: None,
            memory_bytes: 0,
            image_bytes: 0,
            started: None,
            log_begun: None,
            ended: None,
            guard: None,
        };
        let guard: Status = serde_json::from_str(Status::OLD).expect("a guard");
        let complete = |dir: &Path| {
            Draft::write(dir, &evidence, false, false)?;
            Draft::read(dir)?.give_way(dir)?;
            let mut draft = Draft::read(dir)?;
            assert!(draft.has_another_failed);
            draft.complete(dir, &guard)
        };
        let write = |dir: &Path| evidence.write(dir);
        for write in [&write as &dyn Fn(&Path) -> Result<(), Error>, &complete] {
            let dir = images();
            write(dir.path()).expect("it is written");
            let text = fs::read(dir.path().join(Evidence::FILE)).expect("evidence");
            let value: Value = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(value["version"], json::VERSION);
            assert_eq!(value["pid"], 12);
            let known = Known::of_images(dir.path()).expect("it is good");
            assert!(known.is_some());
        }
    }
}
