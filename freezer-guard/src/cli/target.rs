//! What a user may call a cgroup: a path, or a systemd unit.

use std::path::{Path, PathBuf};

use freezer_guard::{
    cgroup::{self, Cgroup},
    guard::{Error, Target},
};

/// The suffixes of units that have a cgroup (`systemd.unit(5)`).
pub(super) const UNIT_SUFFIXES: [&str; 6] =
    [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// The cgroups that a path or a unit's name stands for.
pub(super) fn resolve(name: &Path) -> Result<Target, Error> {
    let unit = name.to_str().filter(|name| {
        !name.contains('/') && UNIT_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
    });
    Ok(match (Cgroup::open(name), unit) {
        // Some file of that name may be in this directory.
        (Err(cgroup::Error::NotACgroup(_) | cgroup::Error::Io { .. }), Some(unit)) => {
            cgroup::of_unit(unit)?
        }
        (cgroup, _) => vec![cgroup?],
    })
}

/// Those that are named, or else those of the process.
pub(super) fn all(names: &[PathBuf], pid: Option<i32>) -> Result<Vec<Target>, Error> {
    match pid {
        Some(pid) if names.is_empty() => Ok(vec![of_pid(pid)?]),
        _ => names.iter().map(|name| resolve(name)).collect(),
    }
}

/// The cgroups of a process, without those that it shares with others.
pub(super) fn of_pid(pid: i32) -> Result<Target, Error> {
    let target = cgroup::own_of_pid(pid)?;
    if target.is_empty() {
        return Err(cgroup::Error::PidInRoot(pid).into());
    }
    Ok(target)
}
