//! cgroups of the v1 freezer and of v2, behind one type. Knows nothing of BPF.
//!
//! A cgroup is opened once; everything then goes through that descriptor, so
//! that a rename or an unmount cannot make us act on another one.

mod created;
mod find;
mod mounts;
mod namespace;
mod others;
mod proc;
mod state;
mod tree;

use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use freezer_guard_abi::CgroupKey;
use nix::{
    fcntl::{OFlag, openat},
    sys::{
        stat::Mode,
        statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use crate::Kind;

pub use created::CreatedCgroups;
pub use find::{by_key, freezer_mount, has_v1_freezer, of_pid, of_unit, open_all, unified_mount};
pub use others::{hybrid_roots, joined, others, own_of_pid};
pub(crate) use proc::is_gone;
pub use state::FreezerState;
pub use tree::{
    Report, Task, Traced, descends_from, examine, first_with, process, root, roots, strays,
};

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a path failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried: `open`, `read`, `write`.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The path is no directory of a cgroup file system.
    #[error("{} is not a cgroup: name the directory of a cgroup, such as one below /sys/fs/cgroup", .0.display())]
    NotACgroup(PathBuf),
    /// A v1 hierarchy without the freezer.
    #[error("{} is in a v1 hierarchy without the freezer: look below the mount of the freezer{}", path.display(), hint.as_ref().map(|hint| format!(", {}", hint.display())).unwrap_or_default())]
    NoFreezer {
        /// The cgroup.
        path: PathBuf,
        /// Where the freezer is mounted.
        hint: Option<PathBuf>,
    },
    /// The root of a hierarchy, which cannot be frozen.
    #[error("{} is the root cgroup, which has no freezer: guard the container's own cgroup", .0.display())]
    Root(PathBuf),
    /// A cgroup for some threads of processes that are in one above it.
    #[error("{} is a threaded cgroup, which holds no whole process: guard the one above it that is of type `domain threaded`", .0.display())]
    Threaded(PathBuf),
    /// A process that is in no cgroup that can be frozen.
    #[error(
        "process {0} is in the root cgroup only, which has no freezer: put it into a cgroup first"
    )]
    PidInRoot(i32),
    /// Tasks are in a cgroup that the mount of its hierarchy does not show.
    #[error(
        "tasks of the target are in the {version} cgroup {}, and the {version} mount shows only a part of the hierarchy: run freezer-guard on the host", path.display()
    )]
    NotSeen {
        /// The cgroup, as `/proc/PID/cgroup` has it.
        path: PathBuf,
        /// Its hierarchy.
        version: Version,
    },
    /// Cgroups in both hierarchies whose freezers would stop the same tasks, and others.
    #[error(
        "{} and {} share some of their tasks: name the one that holds the whole container",
        .0.display(), .1.display()
    )]
    Shared(PathBuf, PathBuf),
    /// A cgroup without a process.
    #[error("{} holds no process: name the cgroup in which the processes run", .0.display())]
    Empty(PathBuf),
    /// Processes that have no common root in the cgroup.
    #[error(
        "{} holds {} process trees, and CRIU dumps one: name its root with --pid (one of {})",
        path.display(), roots.len(), roots.join(", ")
    )]
    ManyTrees {
        /// The cgroup.
        path: PathBuf,
        /// The roots.
        roots: Vec<String>,
    },
    /// There is no such process.
    #[error("there is no process with the pid {0}")]
    NoProcess(i32),
    /// A systemd unit without a cgroup.
    #[error("unit {unit}: {reason}")]
    Unit {
        /// The unit.
        unit: String,
        /// What systemd says of it.
        reason: String,
    },
}

impl Error {
    /// Returns the kind of this failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => Kind::of_io(source),
            Self::NotACgroup(_)
            | Self::NoFreezer { .. }
            | Self::Root(_)
            | Self::Threaded(_)
            | Self::PidInRoot(_)
            | Self::NotSeen { .. }
            | Self::Shared(..)
            | Self::Empty(_)
            | Self::ManyTrees { .. }
            | Self::NoProcess(_)
            | Self::Unit { .. } => Kind::Request,
        }
    }
}

/// The id of every hierarchy's root directory (`kernfs_create_root`).
const ROOT_ID: u64 = 1;

/// The version of the interface a cgroup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `freezer.state`
    V1,
    /// `cgroup.freeze`
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1's freezer",
            Self::V2 => "v2",
        })
    }
}

impl Version {
    /// The name of the freezer's file.
    pub(super) const fn freezer(self) -> &'static str {
        match self {
            Self::V1 => "freezer.state",
            Self::V2 => "cgroup.freeze",
        }
    }
}

/// An open cgroup that has a freezer. A clone shares the descriptor.
#[derive(Debug, Clone)]
pub struct Cgroup {
    directory: Arc<File>,
    path: PathBuf,
    version: Version,
    key: CgroupKey,
}

impl Cgroup {
    /// Opens the directory of a cgroup.
    ///
    /// # Errors
    /// When there is no such path, it is no cgroup, is a root cgroup, or lies
    /// in a v1 hierarchy without the freezer.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            operation: "open",
            path: path.to_owned(),
            source,
        };
        let directory = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotADirectory => Error::NotACgroup(path.to_owned()),
                _ => failed(source),
            })?;
        let path = path.canonicalize().map_err(failed)?;
        let mut cgroup = Self::of_directory(directory, path)?;
        if cgroup.version == Version::V2 && cgroup.read("cgroup.type")?.trim() == "threaded" {
            return Err(Error::Threaded(cgroup.path));
        }
        // Through a bind mount the way up would end too early.
        if let Some(path) = by_key(cgroup.key) {
            cgroup.path = path;
        }
        Ok(cgroup)
    }

    /// Opens a cgroup whose path is known to be a good one.
    fn open_found(path: &Path) -> Result<Self, Error> {
        let directory = File::open(path).map_err(|source| Error::Io {
            operation: "open",
            path: path.to_owned(),
            source,
        })?;
        Self::of_directory(directory, path.to_owned())
    }

    fn of_directory(directory: File, path: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            operation: "examine",
            path: path.clone(),
            source,
        };
        let kind = fstatfs(&directory)
            .map_err(|errno| failed(errno.into()))?
            .filesystem_type();
        let metadata = directory.metadata().map_err(failed)?;
        let version = match kind {
            CGROUP2_SUPER_MAGIC => Version::V2,
            CGROUP_SUPER_MAGIC => Version::V1,
            _ => return Err(Error::NotACgroup(path)),
        };
        if !metadata.is_dir() {
            return Err(Error::NotACgroup(path));
        }
        let has = |file: &str| open_in(&directory, file, OFlag::O_PATH).is_ok();
        if metadata.ino() == ROOT_ID {
            return Err(Error::Root(path));
        }
        let hierarchy_id = match version {
            Version::V1 if !has("freezer.state") => {
                return Err(Error::NoFreezer {
                    path,
                    hint: freezer_mount()?,
                });
            }
            Version::V1 => find::freezer_hierarchy_id()?,
            Version::V2 => 0,
        };
        let key = CgroupKey::new(hierarchy_id, metadata.ino());
        Ok(Self {
            directory: directory.into(),
            path,
            version,
            key,
        })
    }

    /// Its path when it was opened, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A text that leads another process to it while this is open: its path, or for one that
    /// is no text that of our descriptor.
    pub fn address(&self) -> String {
        match self.path.to_str() {
            Some(path) => path.to_owned(),
            None => format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                self.directory.as_raw_fd()
            ),
        }
    }

    /// v1 or v2.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its identity.
    pub fn key(&self) -> CgroupKey {
        self.key
    }

    /// The identity of its hierarchy's root.
    pub fn root_key(&self) -> CgroupKey {
        CgroupKey::new(self.key.hierarchy_id, ROOT_ID)
    }

    /// The cgroups above it, nearest first, up to the root of the hierarchy or
    /// of what is mounted. The root itself cannot be frozen and is left out.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn ancestors(&self) -> Result<Vec<Self>, Error> {
        let mut ancestors = Vec::new();
        let mut path = self.path.as_path();
        while let Some(parent) = path.parent() {
            match Self::open_found(parent) {
                Ok(cgroup) if cgroup.key.hierarchy_id == self.key.hierarchy_id => {
                    ancestors.push(cgroup);
                }
                // The mount ends here, or the hierarchy does.
                Ok(_) | Err(Error::Root(_) | Error::NotACgroup(_) | Error::NoFreezer { .. }) => {
                    break;
                }
                Err(error) => return Err(error),
            }
            path = parent;
        }
        Ok(ancestors)
    }

    /// The cgroups below it.
    ///
    /// # Errors
    /// When one cannot be read; one that vanishes meanwhile is left out.
    pub fn descendants(&self) -> Result<Vec<Self>, Error> {
        let mut found = Vec::new();
        let mut dirs = vec![self.path.clone()];
        while let Some(dir) = dirs.pop() {
            let entries = match std::fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(Error::Io {
                        operation: "read",
                        path: dir,
                        source,
                    });
                }
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let path = entry.path();
                    match Self::open_found(&path) {
                        Ok(cgroup) => found.push(cgroup),
                        Err(Error::Io { source, .. })
                            if source.kind() == io::ErrorKind::NotFound =>
                        {
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                    dirs.push(path);
                }
            }
        }
        Ok(found)
    }

    /// The file of its freezer.
    pub fn freezer_file(&self) -> PathBuf {
        self.path.join(self.version.freezer())
    }

    /// The thread ids in it.
    ///
    /// # Errors
    /// When its list cannot be read.
    pub fn threads(&self) -> Result<Vec<i32>, Error> {
        let file = match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        };
        Ok(self
            .read(file)?
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect())
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let mut text = String::new();
        open_in(&self.directory, file, OFlag::O_RDONLY)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|source| self.failed("read", file, source))?;
        Ok(text)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        open_in(&self.directory, file, OFlag::O_WRONLY)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(|source| self.failed("write", file, source))
    }

    fn failed(&self, operation: &'static str, file: &str, source: io::Error) -> Error {
        Error::Io {
            operation,
            path: self.path.join(file),
            source,
        }
    }
}

fn open_in(directory: &File, file: &str, flags: OFlag) -> io::Result<File> {
    Ok(openat(directory, file, flags | OFlag::O_CLOEXEC, Mode::empty())?.into())
}
