//! From a pid, a unit or an identity to cgroups.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use freezer_guard_ebpf::CgroupKey;
use procfs::{ProcError, process::Process};

use super::{Cgroup, Error};
use crate::sys;

/// Where a hierarchy is mounted, and which of its cgroups is at the mount point.
struct Mount {
    point: PathBuf,
    root: PathBuf,
}

impl Mount {
    /// Where the cgroup with this path in its hierarchy is seen through the mount.
    fn locate(&self, cgroup: &Path) -> Option<PathBuf> {
        let below = cgroup.strip_prefix(&self.root).ok()?;
        Some(if below.as_os_str().is_empty() {
            self.point.clone()
        } else {
            self.point.join(below)
        })
    }
}

/// The first mount of the freezer (v1) and of v2; the one that shows most comes first.
fn mounts() -> Result<[Option<Mount>; 2], Error> {
    let mut mounts = [const { None::<Mount> }; 2];
    for mount in Process::myself()?.mountinfo()? {
        let place = match &*mount.fs_type {
            "cgroup" if mount.super_options.contains_key("freezer") => &mut mounts[0],
            "cgroup2" => &mut mounts[1],
            _ => continue,
        };
        let mount = Mount {
            point: mount.mount_point,
            root: mount.root.into(),
        };
        let depth = |mount: &Mount| mount.root.components().count();
        if place
            .as_ref()
            .is_none_or(|first| depth(&mount) < depth(first))
        {
            *place = Some(mount);
        }
    }
    Ok(mounts)
}

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
    let [freezer, _] = mounts()?;
    Ok(freezer.map(|mount| mount.point))
}

/// Where v2 is mounted.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn unified_mount() -> Result<Option<PathBuf>, Error> {
    let [_, unified] = mounts()?;
    Ok(unified.map(|mount| mount.point))
}

/// The id of the v1 freezer's hierarchy.
pub(super) fn freezer_hierarchy_id() -> Result<u32, Error> {
    Ok(Process::myself()?
        .cgroups()?
        .0
        .into_iter()
        .find(|cgroup| cgroup.controllers.iter().any(|name| name == "freezer"))
        .map_or(0, |cgroup| cgroup.hierarchy))
}

/// Opens cgroups, a list for each container: one that has the same path in both
/// hierarchies is one.
///
/// # Errors
/// When one of them cannot be opened.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Vec<Cgroup>>, Error> {
    let mounts = mounts()?.map(|mount| Some(mount?.point));
    // v2 may be mounted below v1's folder: the longest one it is.
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
    let cgroups = match Process::new(pid).and_then(|process| process.cgroups()) {
        Ok(cgroups) => cgroups,
        Err(ProcError::NotFound(_)) => return Err(Error::NoProcess(pid)),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for (v1, mount) in [true, false].into_iter().zip(mounts()?) {
        let path = cgroups.0.iter().find(|cgroup| match v1 {
            true => cgroup.controllers.iter().any(|name| name == "freezer"),
            false => cgroup.hierarchy == 0,
        });
        if let (Some(path), Some(mount)) = (path, mount)
            && let Some(path) = mount.locate(Path::new(&path.pathname))
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
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if path.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(if said.is_empty() {
            "it has no cgroup: is it running?".to_owned()
        } else {
            said
        }));
    }
    let mut found = Vec::new();
    for mount in mounts()?.into_iter().flatten() {
        if let Some(path) = mount.locate(Path::new(&path))
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
    let [freezer, unified] = mounts().ok()?;
    let mount = if key.hierarchy_id == 0 {
        unified
    } else {
        freezer
    }?;
    let node = sys::open_kernfs_node(&File::open(mount.point).ok()?, key.kernfs_id).ok()?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&node));
    fs::read_link(link).ok().filter(|path| path.is_dir())
}
