//! Who may do what over the socket.
//!
//! Root and the members of a group may do everything. Anybody else may guard a
//! cgroup if he shows by an open descriptor that he may write its freezer, with a
//! holder of his own, and may end what he holds.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
};

use freezer_guard::{
    cgroup::{self, Cgroup},
    guard::PidFd,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::fstat,
};
use rustix::fs::{AtFlags, StatxFlags, makedev, statx};
use zlink::{
    Connection,
    connection::socket::{FetchPeerCredentials, Socket},
};

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: u32,
    groups: Vec<u32>,
    process: PidFd,
}

impl Peer {
    /// `seen`: the process that connected, as it was found before Linux 6.5, which has no
    /// SO_PEERPIDFD.
    ///
    /// # Errors
    /// Also when the process has ended that made the connection.
    pub(super) async fn of<Sock>(
        connection: &mut Connection<Sock>,
        seen: Option<&PidFd>,
    ) -> zlink::Result<Self>
    where
        Sock: Socket,
        Sock::ReadHalf: FetchPeerCredentials,
    {
        let credentials = connection.peer_credentials().await?;
        let mut groups = vec![credentials.unix_primary_group_id().as_raw()];
        groups.extend(
            credentials
                .unix_supplementary_group_ids()
                .iter()
                .map(|group| group.as_raw()),
        );
        let pid = u32::try_from(credentials.process_id().as_raw_pid()).unwrap_or(0);
        let process = match credentials.process_fd() {
            Some(fd) => PidFd::from_fd(fd.try_clone_to_owned()?),
            None => seen
                .ok_or_else(|| io::Error::other("it has ended"))?
                .try_clone()?,
        };
        Ok(Self {
            uid: credentials.unix_user_id().as_raw(),
            pid,
            groups,
            process,
        })
    }

    /// Its process.
    pub(super) fn process(&self) -> &PidFd {
        &self.process
    }

    /// The same, to be a holder.
    pub(super) fn into_process(self) -> PidFd {
        self.process
    }

    /// Whether its process is among these.
    pub(super) fn is_among(&self, pids: &[u32]) -> bool {
        pids.contains(&self.pid) && self.process.pid().is_ok() && self.owns(&self.process)
    }

    /// Whether it may do everything.
    pub(super) fn is_trusted(&self, group: &str) -> bool {
        self.uid == 0 || group_id(group).is_some_and(|group| self.groups.contains(&group))
    }

    /// Whether one of the descriptors shows that it may write the cgroup's freezer.
    pub(super) fn may_write(cgroup: &Cgroup, proofs: &[OwnedFd]) -> bool {
        let Ok(freezer) = fs::metadata(cgroup.freezer_file()) else {
            return false;
        };
        proofs.iter().any(|proof| {
            let is_writable = fcntl(proof.as_fd(), FcntlArg::F_GETFL).is_ok_and(|flags| {
                let flags = OFlag::from_bits_truncate(flags);
                flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR) && !flags.contains(OFlag::O_PATH)
            });
            let is_freezer = fstat(proof.as_fd())
                .is_ok_and(|file| (file.st_dev, file.st_ino) == (freezer.dev(), freezer.ino()));
            is_writable && is_freezer
        })
    }

    /// Whether it may make this process the holder of a guard.
    pub(super) fn owns(&self, process: &PidFd) -> bool {
        process
            .pid()
            .ok()
            .and_then(|pid| fs::metadata(format!("/proc/{pid}")).ok())
            .is_some_and(|process| process.uid() == self.uid)
    }
}

/// The id of a group, by its name in `/etc/group` or its number. (A static binary
/// has no other name service: `getgrnam` would want shared libraries.)
pub(super) fn group_id(group: &str) -> Option<u32> {
    let named = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(group))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    };
    group.parse().ok().or_else(|| {
        // Other names may be in any encoding.
        let groups = fs::read("/etc/group").ok()?;
        String::from_utf8_lossy(&groups).lines().find_map(named)
    })
}

/// Returns whether the descriptor is one of a cgroup's files, or a pidfd: to ask for its state and
/// to close it never waits for somebody else, as it does with FUSE and NFS. This itself asks for
/// what the kernel knows already.
pub(super) fn is_harmless(fd: &OwnedFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    let link = link.as_os_str().as_bytes();
    // A path begins with a slash.
    if [&b"anon_inode:[pidfd]"[..], b"pidfd:["]
        .iter()
        .any(|name| link.starts_with(name))
    {
        return true;
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let Ok(file) = statx(fd, "", flags, StatxFlags::TYPE) else {
        return false;
    };
    [cgroup::freezer_mount(), cgroup::unified_mount()]
        .into_iter()
        .filter_map(|mount| fs::metadata(mount.ok()??).ok())
        .any(|mount| mount.dev() == makedev(file.stx_dev_major, file.stx_dev_minor))
}
