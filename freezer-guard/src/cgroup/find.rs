//! From a pid, a unit or an identity to cgroups.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use freezer_guard_abi::CgroupKey;

use super::{Cgroup, Error, Version, mounts::Mounts, proc::Membership};
use crate::sys;

/// Whether the freezer is a controller of some v1 hierarchy now, by `/proc/cgroups`: the
/// kernel tells that at once, however many mounts there are.
pub fn has_v1_freezer() -> bool {
    let controllers = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    // Name, hierarchy id (0: v2), number of cgroups, enabled.
    controllers
        .lines()
        .filter_map(|line| line.strip_prefix("freezer\t")?.split('\t').next())
        .any(|hierarchy| hierarchy != "0")
}

/// Where the v1 freezer is mounted.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn freezer_mount() -> Result<Option<PathBuf>, Error> {
    Ok(Mounts::now()?.freezer.map(|mount| mount.point))
}

/// Where v2 is mounted.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn unified_mount() -> Result<Option<PathBuf>, Error> {
    Ok(Mounts::now()?.unified.map(|mount| mount.point))
}

/// The id of the v1 freezer's hierarchy.
pub(super) fn freezer_hierarchy_id() -> Result<u32, Error> {
    let own = Membership::all("self")?.unwrap_or_default();
    let freezer = own.into_iter().find(|cgroup| cgroup.is_of(Version::V1));
    Ok(freezer.map_or(0, |cgroup| cgroup.hierarchy_id))
}

/// Opens cgroups, a list for each container: one that has the same path in both
/// hierarchies is one.
///
/// # Errors
/// When one of them cannot be opened.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Vec<Cgroup>>, Error> {
    let mounts = [freezer_mount()?, unified_mount()?];
    // v2 may be mounted below v1's directory: the longest one it is.
    let within = |path: &Path| {
        let below = mounts.iter().flatten();
        below
            .filter_map(|mount| path.strip_prefix(mount).ok())
            .min_by_key(|path| path.components().count())
            .map(Path::to_owned)
    };
    let mut containers: Vec<Vec<Cgroup>> = Vec::new();
    for path in paths {
        let cgroup = Cgroup::open(path)?;
        let same = containers.iter_mut().find(|container| {
            container.iter().all(|other| {
                other.version() != cgroup.version() && within(other.path()) == within(cgroup.path())
            })
        });
        match same {
            Some(container) => container.push(cgroup),
            None => containers.push(vec![cgroup]),
        }
    }
    for container in &mut containers {
        // v1 first.
        container.sort_by_key(|cgroup| cgroup.key().hierarchy_id == 0);
    }
    Ok(containers)
}

/// The cgroups with a freezer that a process is in: v1 first, then v2. Empty
/// when it is in root cgroups only.
///
/// # Errors
/// When there is no such process.
pub fn of_pid(pid: i32) -> Result<Vec<Cgroup>, Error> {
    let cgroups = Membership::all(pid)?.ok_or(Error::NoProcess(pid))?;
    let mut found = Vec::new();
    for version in [Version::V1, Version::V2] {
        if let Some(cgroup) = cgroups.iter().find(|cgroup| cgroup.is_of(version))
            && let Some(mount) = Mounts::now()?.of(version)
            && let Some(path) = mount.locate(&cgroup.path)
        {
            match Cgroup::open(&path) {
                Ok(cgroup) => found.push(cgroup),
                Err(Error::Root(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// The cgroups of a systemd unit.
///
/// # Errors
/// When systemd does not know it, it has no cgroup, or its cgroup no freezer.
pub fn of_unit(unit: &str) -> Result<Vec<Cgroup>, Error> {
    let failed = |reason: String| Error::Unit {
        unit: unit.to_owned(),
        reason,
    };
    let output = Command::new("systemctl")
        .args(["show", "--property=ControlGroup", "--value", "--", unit])
        .output()
        .map_err(|error| failed(format!("cannot run systemctl: {error}")))?;
    let path = Path::new(OsStr::from_bytes(output.stdout.trim_ascii()));
    if path.as_os_str().is_empty() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(if reason.is_empty() {
            "it has no cgroup: is it running?".to_owned()
        } else {
            reason
        }));
    }
    if output.stdout.trim_ascii().contains(&b'\n') {
        return Err(failed("it stands for several units: name one".to_owned()));
    }
    let mut found = Vec::new();
    let Mounts { freezer, unified } = Mounts::now()?;
    for mount in [freezer, unified].into_iter().flatten() {
        if let Some(path) = mount.locate(path)
            && path.is_dir()
        {
            found.push(Cgroup::open(&path)?);
        }
    }
    if found.is_empty() {
        return Err(failed(
            "its cgroup has no freezer (systemd does not use v1's)".to_owned(),
        ));
    }
    Ok(found)
}

/// The path of a cgroup with this identity, if it still exists and is mounted.
pub fn by_key(key: CgroupKey) -> Option<PathBuf> {
    let version = match key.hierarchy_id {
        0 => Version::V2,
        _ => Version::V1,
    };
    let mount = Mounts::now().ok()?.of(version)?;
    let node = sys::open_kernfs_node(&File::open(mount.point).ok()?, key.kernfs_id).ok()?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&node));
    fs::read_link(link).ok().filter(|path| path.is_dir())
}
