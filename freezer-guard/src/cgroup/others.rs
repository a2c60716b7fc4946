//! Where tasks are in the other hierarchy with a freezer: a hybrid host has one of v1 and v2.

use std::collections::BTreeSet;

use freezer_guard_abi::CgroupKey;

use super::{
    Cgroup, Error, ROOT_ID, Version, find::freezer_hierarchy_id, mounts::Mounts, proc,
    proc::Membership, tree,
};

/// A cgroup that tasks are in besides those that were asked about.
#[derive(Debug)]
pub struct Other {
    /// The cgroup. A root is none: nobody can freeze it.
    pub cgroup: Cgroup,
    /// Whether there are other tasks in it or below.
    pub is_shared: bool,
}

/// The roots of the hierarchies of a hybrid host; none on any other.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn hybrid_roots() -> Result<Vec<CgroupKey>, Error> {
    Ok(match Mounts::now()? {
        Mounts {
            freezer: Some(_),
            unified: Some(_),
        } => [freezer_hierarchy_id()?, 0]
            .map(|hierarchy| CgroupKey::new(hierarchy, ROOT_ID))
            .into(),
        _ => Vec::new(),
    })
}

/// The cgroups that the threads in these cgroups and below are in, in any hierarchy with a
/// freezer, besides these.
///
/// # Errors
/// When `/proc` or a cgroup cannot be read, or a cgroup is not to be seen through the mount of its
/// hierarchy.
pub fn others(cgroups: &[&Cgroup]) -> Result<Vec<Other>, Error> {
    let mounts = Mounts::now()?;
    if mounts.freezer.is_none() || mounts.unified.is_none() {
        return Ok(Vec::new());
    }
    let threads: BTreeSet<i32> = tree::inside(cgroups)?.into_values().flatten().collect();
    let mut places = BTreeSet::new();
    for tid in &threads {
        for place in Membership::all(*tid)?.unwrap_or_default() {
            let versions = [Version::V1, Version::V2].into_iter();
            let version = versions.into_iter().find(|version| place.is_of(*version));
            places.extend(version.map(|version| (version, place.path)));
        }
    }
    let mut others = Vec::new();
    for (version, path) in places {
        let mount = mounts.clone().of(version);
        let path = match mount.and_then(|mount| mount.locate(&path)) {
            Some(path) => path,
            None => return Err(Error::NotSeen { path, version }),
        };
        let cgroup = match Cgroup::open_found(&path) {
            Err(Error::Root(_)) => continue,
            Err(Error::Io { source, .. }) if proc::is_gone(&source) => continue,
            cgroup => cgroup?,
        };
        if !is_in(cgroups, &cgroup)? {
            let all = tree::inside(&[&cgroup])?.into_values().flatten();
            let is_shared = !threads.is_superset(&all.collect());
            others.push(Other { cgroup, is_shared });
        }
    }
    Ok(others)
}

/// Whether the cgroup is one of these, or lies below one.
fn is_in(cgroups: &[&Cgroup], cgroup: &Cgroup) -> Result<bool, Error> {
    let above = cgroup.ancestors()?;
    let mut line = above.iter().chain([cgroup]);
    Ok(line.any(|place| cgroups.iter().any(|known| known.key() == place.key())))
}

/// The cgroups with a freezer that a process is in, without those that it shares with processes
/// that do not descend from it, if another is left: v1 first. Empty when it is in root cgroups
/// only.
///
/// # Errors
/// When there is no such process.
pub fn own_of_pid(pid: i32) -> Result<Vec<Cgroup>, Error> {
    let mut cgroups = super::of_pid(pid)?;
    if cgroups.len() < 2 {
        return Ok(cgroups);
    }
    let mut is_own = Vec::new();
    for cgroup in &cgroups {
        // The tree last: it may grow.
        let threads = tree::inside(&[cgroup])?.into_values().flatten();
        let threads: BTreeSet<_> = threads.collect();
        is_own.push(tree::threads_below(pid)?.is_superset(&threads));
    }
    if is_own.contains(&true) {
        let mut is_own = is_own.into_iter();
        cgroups.retain(|_| is_own.next().unwrap_or(true));
    }
    Ok(cgroups)
}
