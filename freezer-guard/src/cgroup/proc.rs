//! What `/proc` says of tasks. Names may be any bytes: users choose them.

use std::{
    ffi::OsStr,
    fmt, fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{Error, Version};

/// What `/proc/PID/status` says of a task, as far as it is looked at. (procfs reads all of
/// its 60 lines, which takes as long as the kernel takes to write them.)
pub(super) struct Status {
    pub(super) name: String,
    pub(super) state: char,
    pub(super) tgid: i32,
    pub(super) ppid: i32,
    pub(super) tracerpid: i32,
}

impl Status {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
        };
        Some(Self {
            name: field("Name")?.to_owned(),
            state: field("State")?.chars().next()?,
            tgid: field("Tgid")?.parse().ok()?,
            ppid: field("PPid")?.parse().ok()?,
            tracerpid: field("TracerPid")?.parse().ok()?,
        })
    }
}

/// What `/proc` says of a task; `None` when it has ended. Its name may be any bytes.
pub(super) fn status(tid: i32) -> Result<Option<Status>, Error> {
    let path = PathBuf::from(format!("/proc/{tid}/status"));
    let status = match fs::read(&path) {
        Err(error) if is_gone(&error) => return Ok(None),
        bytes => bytes.and_then(|bytes| {
            Status::parse(&String::from_utf8_lossy(&bytes))
                .ok_or_else(|| io::ErrorKind::InvalidData.into())
        }),
    };
    status.map(Some).map_err(|source| Error::Io {
        operation: "read",
        path,
        source,
    })
}

/// Returns whether the access failed because a task has ended or a cgroup was removed: ENOENT;
/// ESRCH for a file of `/proc` and ENODEV for one of a cgroup that were open already.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::ENODEV)
    )
}

/// The tasks that a directory of `/proc` lists; none when it has gone.
pub(super) fn numbers(dir: &Path) -> Result<Vec<i32>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| Error::Io {
            operation: "read",
            path: dir.to_owned(),
            source,
        })?,
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect())
}

/// The processes that this thread has started, or got from one that has ended. CRIU
/// finds them there too: the kernel has it if it can be checkpointed
/// (`CONFIG_CHECKPOINT_RESTORE` selects `CONFIG_PROC_CHILDREN`).
pub(super) fn children(pid: i32, tid: i32) -> Result<Vec<i32>, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/task/{tid}/children"));
    let pids = match fs::read_to_string(&path) {
        Err(error) if is_gone(&error) && !path.with_file_name("status").exists() => String::new(),
        pids => pids.map_err(|source| Error::Io {
            operation: "read",
            path,
            source,
        })?,
    };
    Ok(pids
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect())
}

/// The cgroup of a process in one hierarchy: a line of `/proc/PID/cgroup`.
pub(super) struct Membership {
    /// 0 is v2.
    pub(super) hierarchy_id: u32,
    has_freezer: bool,
    /// Its path in the hierarchy, as the reader's cgroup namespace shows it.
    pub(super) path: PathBuf,
}

impl Membership {
    /// All of a task's; `None` when it has ended.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn all(task: impl fmt::Display) -> Result<Option<Vec<Self>>, Error> {
        let path = PathBuf::from(format!("/proc/{task}/cgroup"));
        match fs::read(&path) {
            Err(error) if is_gone(&error) => Ok(None),
            Err(source) => Err(Error::Io {
                operation: "read",
                path,
                source,
            }),
            Ok(bytes) => {
                let lines = bytes.split(|byte| *byte == b'\n');
                Ok(Some(lines.filter_map(Self::parse).collect()))
            }
        }
    }

    /// Whether it is in the hierarchy of the v1 freezer, or in v2.
    pub(super) fn is_of(&self, version: Version) -> bool {
        match version {
            Version::V1 => self.has_freezer,
            Version::V2 => self.hierarchy_id == 0,
        }
    }

    /// `cgroups(7)`: hierarchy id, controllers, path. A path may hold colons.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (id, controllers) = (fields.next()?, fields.next()?);
        Some(Self {
            hierarchy_id: str::from_utf8(id).ok()?.parse().ok()?,
            has_freezer: controllers
                .split(|byte| *byte == b',')
                .any(|name| name == b"freezer"),
            path: OsStr::from_bytes(fields.next()?).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

    use super::{Error, Membership, Status, Version, status};

    #[test]
    fn reads_what_the_kernel_says() -> Result<(), &'static str> {
        let text = "Name:\tState:\\n\nUmask:\t0022\nState:\tt (tracing stop)\nTgid:\t71\n\
                    Ngid:\t0\nPid:\t72\nPPid:\t7\nTracerPid:\t34\nUid:\t0\t0\t0\t0\n";
        let status = Status::parse(text).ok_or("it is not read")?;
        assert_eq!(status.name, "State:\\n");
        assert_eq!(status.state, 't');
        assert_eq!((status.tgid, status.ppid, status.tracerpid), (71, 7, 34));
        assert!(Status::parse("Name:\tcat\n").is_none());
        Ok(())
    }

    #[test]
    fn reads_itself() -> Result<(), Error> {
        let pid = std::process::id().cast_signed();
        let own = status(pid)?.ok_or(Error::NoProcess(pid))?;
        assert_eq!(own.tgid, pid);
        assert!(status(i32::MAX)?.is_none());
        Ok(())
    }

    #[test]
    fn reads_the_cgroups_of_a_task() -> Result<(), &'static str> {
        let of = |line: &[u8]| Membership::parse(line).ok_or("it is not read");
        let freezer = of(b"7:cpuset,freezer:/a:b/\xff")?;
        assert!(freezer.is_of(Version::V1) && !freezer.is_of(Version::V2));
        assert_eq!(freezer.path, Path::new(OsStr::from_bytes(b"/a:b/\xff")));
        let unified = of(b"0::/user.slice")?;
        assert!(unified.is_of(Version::V2) && !unified.is_of(Version::V1));
        assert!(Membership::parse(b"").is_none());
        Ok(())
    }
}
