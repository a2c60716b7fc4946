//! The mounts of the freezer (v1) and of v2. They are read as bytes: with FUSE users choose the
//! names of mount points.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read as _, Seek as _},
    os::{fd::AsFd as _, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::{
    Error, Version,
    namespace::{Place, Root},
};

/// Where a hierarchy is mounted, and which of its cgroups is at the mount point.
#[derive(Clone)]
pub(super) struct Mount {
    id: u64,
    pub(super) point: PathBuf,
    pub(super) root: Place,
    version: Version,
    namespace: Root,
}

impl Mount {
    /// Where the cgroup with this path in its hierarchy is seen through the mount.
    pub(super) fn locate(&self, cgroup: &Path) -> Option<PathBuf> {
        let below = self.root.way_to(&Place::parse(cgroup), || {
            self.namespace.below(&self.point, self.version)
        })?;
        Some(if below.as_os_str().is_empty() {
            self.point.clone()
        } else {
            self.point.join(below)
        })
    }

    /// Sorts the mount first that shows most of its hierarchy, and of equals the host's own: CRIU
    /// mounts hierarchies below its images for a restore.
    fn rank(&self) -> (isize, bool) {
        let is_elsewhere = !self.point.starts_with("/sys/fs/cgroup");
        (self.root.depth(), is_elsewhere)
    }

    /// Whether the path of the mount point leads to it. The list has mounts, too, that are below
    /// another one, such as a private `/tmp` (`PrivateTmp=`), or the host's hierarchy over a
    /// container's.
    fn is_seen(&self) -> bool {
        let flags = AtFlags::NO_AUTOMOUNT;
        let found = statx(CWD, &self.point, flags, StatxFlags::MNT_ID);
        found.is_ok_and(|found| found.stx_mnt_id == self.id)
    }
}

/// A mount of each.
#[derive(Clone, Default)]
pub(super) struct Mounts {
    pub(super) freezer: Option<Mount>,
    pub(super) unified: Option<Mount>,
}

impl Mounts {
    /// Those of this process. They are read again only when the kernel says that there is a
    /// change: a host has thousands of mounts, and the service asks at each event.
    pub(super) fn now() -> Result<Self, Error> {
        static LAST: Mutex<Option<Watched>> = Mutex::new(None);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let read = match last.take() {
            Some(mut watched) => watched.look_again().map(|()| watched),
            None => Watched::begin(),
        };
        let watched = read.map_err(|source| Error::Io {
            operation: "read",
            path: MOUNTINFO.into(),
            source,
        })?;
        let mounts = watched.mounts.clone();
        *last = Some(watched);
        Ok(mounts)
    }

    pub(super) fn of(self, version: Version) -> Option<Mount> {
        match version {
            Version::V1 => self.freezer,
            Version::V2 => self.unified,
        }
    }

    /// Of each hierarchy the first by rank that is seen.
    fn choose(mountinfo: &[u8], is_seen: impl Fn(&Mount) -> bool) -> Self {
        let lines = mountinfo.split(|byte| *byte == b'\n');
        let mut mounts: Vec<_> = lines.filter_map(parse_line).collect();
        mounts.sort_by_key(|(_, mount)| mount.rank());
        let first = |wanted| {
            let mut mounts = mounts.iter().filter(|(version, _)| *version == wanted);
            mounts.find_map(|(_, mount)| is_seen(mount).then(|| mount.clone()))
        };
        Self {
            freezer: first(Version::V1),
            unified: first(Version::V2),
        }
    }
}

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`): ID, parent, device, root, mount point,
/// options, any number of optional fields, `-`, type, source, options of the file system.
fn parse_line(line: &[u8]) -> Option<(Version, Mount)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let (root, point) = (fields.nth(2)?, fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    let version = match kind {
        b"cgroup2" => Version::V2,
        b"cgroup"
            if options
                .split(|byte| *byte == b',')
                .any(|option| option == b"freezer") =>
        {
            Version::V1
        }
        _ => return None,
    };
    let root = Place::parse(&unescaped(root));
    let point = unescaped(point);
    let mount = Mount {
        id,
        point,
        root,
        version,
        namespace: Root::default(),
    };
    Some((version, mount))
}

/// A path in which the kernel has written space, tab, newline, `#` and backslash in octal, as
/// `\040` (`seq_path`).
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        match code {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

/// The mounts, and the file that tells of changes.
struct Watched {
    mountinfo: File,
    mounts: Mounts,
}

impl Watched {
    fn begin() -> std::io::Result<Self> {
        let mut watched = Self {
            mountinfo: File::open(MOUNTINFO)?,
            mounts: Mounts::default(),
        };
        watched.read()?;
        Ok(watched)
    }

    /// A change since the file was opened or polled shows as an exceptional condition
    /// (`mounts_poll`).
    fn look_again(&mut self) -> std::io::Result<()> {
        let mut polled = [PollFd::new(self.mountinfo.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(0) => Ok(()),
            _ => self.read(),
        }
    }

    fn read(&mut self) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        self.mountinfo.rewind()?;
        self.mountinfo.read_to_end(&mut bytes)?;
        self.mounts = Mounts::choose(&bytes, Mount::is_seen);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::ffi::OsStrExt as _, path::Path};

    use proptest::prelude::*;

    use super::{Mounts, unescaped};

    /// What `seq_path` of the kernel's `fs/seq_file.c` writes.
    fn escaped(path: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for byte in path {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => text.extend(format!("\\{byte:03o}").bytes()),
                _ => text.push(*byte),
            }
        }
        text
    }

    fn line(root: &[u8], point: &[u8], end: &str) -> Vec<u8> {
        let mut line = b"36 35 0:29 ".to_vec();
        line.extend(escaped(root));
        line.push(b' ');
        line.extend(escaped(point));
        line.extend(end.bytes());
        line
    }

    const V1: &str = " rw,nosuid shared:9 - cgroup cgroup rw,freezer\n";
    const V2: &str = " rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const OTHER: &str = " rw shared:1 master:2 - fuse.sshfs me@there:/ rw,user_id=1000\n";

    #[test]
    fn finds_both_hierarchies_among_others() {
        let mut text = line(b"/", b"/mnt/\xff", OTHER);
        text.extend(line(
            b"/",
            b"/sys/fs/cgroup/pids",
            " rw - cgroup cgroup rw,pids\n",
        ));
        text.extend(line(b"/pod", b"/mnt/inner", V2));
        text.extend(line(b"/", b"/tmp/of a restore", V2));
        text.extend(line(b"/", b"/sys/fs/cgroup/a b", V2));
        text.extend(line(b"/", b"/sys/fs/cgroup/freezer", V1));
        text.extend(b"no line of mountinfo\n");
        let mounts = Mounts::choose(&text, |_| true);
        let point = |mount: Option<super::Mount>| mount.map(|mount| mount.point);
        assert_eq!(point(mounts.unified), Some("/sys/fs/cgroup/a b".into()));
        assert_eq!(point(mounts.freezer), Some("/sys/fs/cgroup/freezer".into()));
    }

    /// The service in a container: the engine's own mount shows the container, the host's lies over it.
    #[test]
    fn the_service_in_a_container_sees_the_host() {
        let mut text = line(b"/", b"/sys/fs/cgroup", V2);
        text.extend(line(b"/../..", b"/sys/fs/cgroup", V2));
        let mounts = Mounts::choose(&text, |mount| mount.root.depth() < 0);
        let mount = mounts.unified.expect("there is one");
        let place = mount.locate(Path::new("/../../system.slice"));
        assert_eq!(place, Some("/sys/fs/cgroup/system.slice".into()));
    }

    #[test]
    fn a_mount_of_the_host_shows_more_than_that_of_a_container() {
        let mut text = line(b"/../..", b"/host", V2);
        text.extend(line(b"/", b"/sys/fs/cgroup", V2));
        let mount = Mounts::choose(&text, |_| true)
            .unified
            .expect("there is one");
        assert_eq!(mount.point, Path::new("/host"));
    }

    #[test]
    fn passes_over_a_hidden_mount() {
        let mut text = line(b"/", b"/sys/fs/cgroup", V2);
        text.extend(line(b"/", b"/mnt/seen", V2));
        let chosen = |seen: &str| {
            let mounts = Mounts::choose(&text, |mount| mount.point.starts_with(seen));
            mounts.unified.map(|mount| mount.point)
        };
        assert_eq!(chosen("/mnt"), Some("/mnt/seen".into()));
        assert_eq!(chosen("/sys"), Some("/sys/fs/cgroup".into()));
        assert_eq!(chosen("/none"), None);
    }

    #[test]
    fn reads_this_process() -> Result<(), super::Error> {
        let (once, again) = (Mounts::now()?, Mounts::now()?);
        assert_eq!(
            once.unified.map(|mount| mount.point),
            again.unified.map(|mount| mount.point)
        );
        Ok(())
    }

    proptest! {
        #[test]
        fn every_path_is_read_as_it_is(path: Vec<u8>) {
            let read = unescaped(&escaped(&path));
            prop_assert_eq!(read.as_os_str().as_bytes(), path);
        }

        #[test]
        fn no_foreign_line_hides_ours(point: Vec<u8>, noise: Vec<u8>) {
            let mut text = line(b"/", &point, OTHER);
            text.extend(noise.iter().filter(|byte| **byte != b'\n'));
            text.push(b'\n');
            text.extend(line(b"/", b"/sys/fs/cgroup", V2));
            prop_assert!(Mounts::choose(&text, |_| true).unified.is_some());
        }
    }
}
