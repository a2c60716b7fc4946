//! CRIU, as far as it takes to run it: where it is, what it can, what it says, and
//! what becomes of its images.

mod bugs;
mod command;
mod dir;
mod evidence;
mod file;
mod images;
mod log;
mod record;
mod stages;
mod stats;

use std::{
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

pub use bugs::Bug;
pub use command::{dumped_tree, dumps_without_a_freezer};
pub use dir::{are_complete, bytes, sync};
pub use evidence::{Draft, Evidence, Known, Verdict};
pub use images::Images;
pub use log::{Log, Progress, Stage};
pub use record::Record;
pub use stages::{Action, Stages, Step};
pub use stats::DumpStats;

use procfs::process::Process;

use crate::words::join;

/// The reason why CRIU or a directory of images cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no CRIU.
    #[error("{} was not found: install CRIU, or name it with --criu", .0.display())]
    NotFound(PathBuf),
    /// It cannot be run.
    #[error("run {}", path.display())]
    Run {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It does not say which version it is.
    #[error("{} is not CRIU: its `--version` prints {said:?}", path.display())]
    NoCriu {
        /// Where it is.
        path: PathBuf,
        /// What it says.
        said: String,
    },
    /// This kernel lacks what it needs.
    #[error("CRIU does not work on this kernel: `{} check` says: {said}", path.display())]
    Check {
        /// Where it is.
        path: PathBuf,
        /// What it says.
        said: String,
    },
    /// The kernel does not tell which memory has changed.
    #[error(
        "CRIU cannot tell which memory has changed on this kernel (`{} check --feature mem_dirty_track`), as on arm64: \
         take a whole checkpoint, without --pre-dump and --parent", path.display())]
    NoTracking {
        /// Where CRIU is.
        path: PathBuf,
    },
    /// The caller lacks the rights that CRIU needs, so `criu check` fails.
    #[error("uid {uid} may not use CRIU: it needs the capability CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; run freezer-guard as root (`{} check` says: {said})", path.display())]
    Rights {
        /// Where CRIU is.
        path: PathBuf,
        /// The caller.
        uid: u32,
        /// What CRIU says.
        said: String,
    },
    /// A directory of images, or a file in it, cannot be used.
    #[error("{what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// Why it cannot.
        source: io::Error,
    },
    /// There are images in this place already.
    #[error("{} already exists, and freezer-guard replaces no image: remove it, or choose another --images-dir", .0.display())]
    Exists(PathBuf),
    /// Another file system is mounted there.
    #[error("another file system is mounted on {}, so freezer-guard cannot give images this name in one step: name a directory below it", .0.display())]
    MountPoint(PathBuf),
    /// An image that another one was begun on.
    #[error("another checkpoint was already begun on {}, and the kernel only knows the changes since that one: name the later one as --parent, or start anew without --parent", .0.display())]
    Spent(PathBuf),
    /// An image of another tree.
    #[error("{} is an image of pid {found}, not of pid {wanted}: name an image of the same tree as --parent", path.display())]
    OtherTree {
        /// Its directory.
        path: PathBuf,
        /// The root of its tree.
        found: i32,
        /// The root that was asked for.
        wanted: i32,
    },
    /// A directory without images.
    #[error("{} holds no images of CRIU (it has no inventory.img)", .0.display())]
    NoImages(PathBuf),
    /// A directory with the images of several trees.
    #[error("{} holds the images of several trees: name one of {}", .0.display(), join(.1, ", "))]
    Several(PathBuf, Vec<PathBuf>),
    /// A checkpoint that was interrupted after its images were complete.
    #[error("there is no image {}, but a checkpoint that was interrupted or still runs has left {}, complete: once it has ended, restore from there", .0.display(), join(.1, " and "))]
    Unfinished(PathBuf, Vec<PathBuf>),
    /// A checkpoint without an outcome.
    #[error("the checkpoint in {} was interrupted or still runs, and its image is not complete: `freezer-guard report` of that directory shows how far it is; if it does not run, remove the directory and take another checkpoint", .0.display())]
    Interrupted(PathBuf),
    /// Images that `freezer-guard checkpoint` did not make.
    #[error("{} has no {}: only `freezer-guard checkpoint` writes it beside the images; for an image that an engine or `freezer-guard run` has made, `freezer-guard report --last` shows the guards that the service remembers", .0.display(), Evidence::FILE)]
    NoEvidence(PathBuf),
    /// The checkpoint for this place was not good, or goes on.
    #[error("there is no image {}, but a checkpoint that failed, was interrupted or still runs has left {}: `freezer-guard report` of that directory shows what happened; if no checkpoint runs, remove it and take another", .0.display(), join(.1, " and "))]
    OtherName(PathBuf, Vec<PathBuf>),
    /// Nothing tells what to guard while it is restored.
    #[error("{} does not name the cgroup of its tree (it has no freezer-guard.json): name the cgroup with --cgroup", .0.display())]
    NoCgroup(PathBuf),
    /// A directory that does not exist.
    #[error("there is no directory {}", .0.display())]
    NoDirectory(PathBuf),
    /// Evidence of a later version.
    #[error("a later version of freezer-guard wrote {}: use that version", .0.display())]
    Newer(PathBuf),
    /// An image that is not good.
    #[error("the image {} is not good: {why} (see its {}). To use it nevertheless, restore it with `criu` itself", path.display(), Evidence::FILE)]
    NotGood {
        /// Its directory.
        path: PathBuf,
        /// What is known of it.
        why: &'static str,
    },
}

/// A CRIU that can be run.
#[derive(Debug)]
pub struct Criu {
    path: PathBuf,
    text: String,
    version: (u32, u32),
}

impl Criu {
    /// Finds it, in `PATH` unless it is named.
    ///
    /// # Errors
    /// When it is not there or does not tell its version.
    pub fn find(path: Option<&Path>) -> Result<Self, Error> {
        let path = path.unwrap_or(Path::new("criu"));
        let (_, said) = output_of(path, &["--version"])?;
        // 4.2 adds a line about its revision.
        let text = said.lines().next().unwrap_or_default().to_owned();
        match version(&text) {
            Some(version) => Ok(Self {
                path: path.to_owned(),
                text,
                version,
            }),
            None => Err(Error::NoCriu {
                path: path.to_owned(),
                said: text,
            }),
        }
    }

    /// How to call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of its version: `Version: 4.1.1`.
    pub fn version_text(&self) -> &str {
        &self.text
    }

    /// `4.1`.
    pub fn version(&self) -> impl fmt::Display {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Asks CRIU whether it can tell which memory has changed since an earlier image.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_tracking(&self) -> Result<(), Error> {
        let (good, _) = output_of(&self.path, &["check", "--feature", "mem_dirty_track"])?;
        match good {
            true => Ok(()),
            false => Err(Error::NoTracking {
                path: self.path.clone(),
            }),
        }
    }

    /// Runs `criu check`: does this kernel have what it cannot do without?
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> Result<(), Error> {
        let (good, said) = output_of(&self.path, &["check"])?;
        if good {
            return Ok(());
        }
        let path = self.path.clone();
        let said = said.lines().last().unwrap_or("nothing").to_owned();
        let own = Process::myself().and_then(|process| process.status());
        // Its file can have them too; then the check has another reason to fail.
        Err(match own {
            Ok(own) if !has_rights(own.capeff) => Error::Rights {
                path,
                uid: own.euid,
                said,
            },
            _ => Error::Check { path, said },
        })
    }
}

/// Whether these effective capabilities will do for CRIU (`capability.h`; criu(8), `--unprivileged`).
fn has_rights(effective: u64) -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;
    effective & (CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE) != 0
}

/// Whether a program ends well, and what it writes.
pub(crate) fn output_of(program: &Path, arguments: &[&str]) -> Result<(bool, String), Error> {
    let output = finished(program, arguments)?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Ok((output.status.success(), text))
}

/// Returns the text that a program writes to standard output, if it ends well.
pub(crate) fn stdout_of(program: &Path, arguments: &[&str]) -> Result<Option<String>, Error> {
    let output = finished(program, arguments)?;
    let text = || String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(output.status.success().then(text))
}

/// Runs a program until its end.
fn finished(program: &Path, arguments: &[&str]) -> Result<Output, Error> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    output.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::NotFound(program.to_owned()),
        _ => Error::Run {
            path: program.to_owned(),
            source: error,
        },
    })
}

/// `Version: 3.17.1` is (3, 17).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .strip_prefix("Version:")?
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// The file that CRIU writes last into a directory of images.
const INVENTORY: &str = "inventory.img";

fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{has_rights, stdout_of, version};

    #[test]
    fn only_a_program_that_ends_well_has_an_output() {
        let shell = |script| stdout_of(Path::new("/bin/sh"), &["-c", script]).expect("it runs");
        assert_eq!(shell("echo 1.2.3; exit 1"), None);
        assert_eq!(shell("echo 1.2.3 >&2").as_deref(), Some(""));
        assert_eq!(shell("echo 1.2.3").as_deref(), Some("1.2.3"));
    }

    #[test]
    fn criu_takes_root_or_one_capability() {
        assert!(has_rights(u64::MAX) && has_rights(1 << 21) && has_rights(1 << 40));
        // Those of the service.
        assert!(!has_rights(0) && !has_rights(1 << 38 | 1 << 39));
    }

    #[test]
    fn reads_versions() {
        assert_eq!(version("Version: 3.17.1"), Some((3, 17)));
        assert_eq!(version("Version: 4.1.1 (gitid 0)"), Some((4, 1)));
        assert_eq!(version("true (GNU coreutils) 9.7"), None);
    }
}
