//! Where tasks are in the other hierarchy with a freezer: a hybrid host has one of v1 and v2.

use std::collections::BTreeSet;

use freezer_guard_abi::CgroupKey;

use super::{
    Cgroup, Error, ROOT_ID, Version,
    find::freezer_hierarchy_id,
    is_gone,
    mounts::Mounts,
    proc::{Membership, status},
    tree,
};

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
/// freezer, besides these. The root of a hierarchy is left out: nobody can freeze it.
///
/// # Errors
/// When `/proc` or a cgroup cannot be read, or the mount of a hierarchy does not show a cgroup.
pub fn others(cgroups: &[&Cgroup]) -> Result<Vec<Cgroup>, Error> {
    let mounts = Mounts::now()?;
    if mounts.freezer.is_none() || mounts.unified.is_none() {
        return Ok(Vec::new());
    }
    let mut places = BTreeSet::new();
    for tid in tree::inside(cgroups)?.into_values().flatten() {
        for place in Membership::all(tid)?.unwrap_or_default() {
            let mut versions = [Version::V1, Version::V2].into_iter();
            let version = versions.find(|version| place.is_of(*version));
            places.extend(version.map(|version| (version, place.path)));
        }
    }
    let mut others = Vec::new();
    for (version, path) in places {
        let mount = mounts.clone().of(version);
        let Some(path) = mount.and_then(|mount| mount.locate(&path)) else {
            return Err(Error::NotSeen { path, version });
        };
        match Cgroup::open_found(&path) {
            Ok(cgroup) if !is_in(cgroups, &cgroup)? => others.push(cgroup),
            Ok(_) | Err(Error::Root(_)) => {}
            Err(Error::Io { source, .. }) if is_gone(&source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(others)
}

/// Joins cgroups of v1 and of v2 that hold the same threads to one container, v1 first. One freezer
/// stops these; with both, v2 never reports them frozen, since a task that v1 has stopped does not
/// answer it.
///
/// # Errors
/// When two of them share some threads only, and when `/proc` or a cgroup cannot be read.
pub fn joined(containers: Vec<Vec<Cgroup>>) -> Result<Vec<Vec<Cgroup>>, Error> {
    let mut joined: Vec<Vec<Cgroup>> = Vec::new();
    for container in containers {
        let mut same = None;
        for (place, other) in joined.iter().enumerate() {
            if let ([one], [other]) = (&*container, &**other)
                && one.version() != other.version()
                && hold_the_same(one, other)?
            {
                same = Some(place);
            }
        }
        match same {
            Some(place) => {
                joined[place].extend(container);
                joined[place].sort_by_key(|cgroup| cgroup.key().hierarchy_id == 0);
            }
            None => joined.push(container),
        }
    }
    Ok(joined)
}

/// Returns whether two cgroups hold the same threads, and at least one.
fn hold_the_same(one: &Cgroup, other: &Cgroup) -> Result<bool, Error> {
    let inside =
        |cgroup| Ok::<_, Error>(tree::inside(&[cgroup])?.into_values().flatten().collect());
    let before: BTreeSet<i32> = inside(one)?;
    let others: BTreeSet<i32> = inside(other)?;
    // Threads may start and end meanwhile: each list is compared with a later one.
    let after: BTreeSet<i32> = inside(one)?;
    let mut alone = before.difference(&others).chain(others.difference(&after));
    match before.is_disjoint(&others) {
        true => Ok(false),
        false if alone.any(|tid| matches!(status(*tid), Ok(Some(_)))) => Err(Error::Shared(
            one.path().to_owned(),
            other.path().to_owned(),
        )),
        false => Ok(true),
    }
}

/// Whether the cgroup is one of these, or lies below one.
fn is_in(cgroups: &[&Cgroup], cgroup: &Cgroup) -> Result<bool, Error> {
    let above = cgroup.ancestors()?;
    let mut line = above.iter().chain([cgroup]);
    Ok(line.any(|place| cgroups.iter().any(|known| known.key() == place.key())))
}

/// The cgroups with a freezer that a process is in, v1 first. If one of two holds other processes
/// than the process and its descendants, that one is left out. Empty when it is in root cgroups
/// only.
///
/// # Errors
/// When there is no such process.
pub fn own_of_pid(pid: i32) -> Result<Vec<Cgroup>, Error> {
    let mut cgroups = super::of_pid(pid)?;
    if cgroups.len() < 2 {
        return Ok(cgroups);
    }
    let inside = tree::inside(&cgroups.iter().collect::<Vec<_>>())?;
    // The tree after them: it may grow.
    let tree = tree::threads_below(pid)?;
    let is_own = |cgroup: &Cgroup| {
        let inside = inside.get(&cgroup.key().hierarchy_id).into_iter().flatten();
        let mut foreign = inside.filter(|tid| !tree.contains(tid));
        !foreign.any(|tid| matches!(tree::process(*tid), Ok(Some(_))))
    };
    if cgroups.iter().any(is_own) {
        cgroups.retain(is_own);
    }
    Ok(cgroups)
}
