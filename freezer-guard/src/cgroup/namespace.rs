//! Paths of cgroups as a cgroup namespace shows them. The namespace of a container has the container's
//! cgroup as its root, and shows the host's cgroups as lying above it: `/../../system.slice`.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Version, proc::Membership};

/// A cgroup, as seen from the root of this process's namespace: so many levels up, and then down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    up: usize,
    down: PathBuf,
}

impl Place {
    /// Reads a path of `/proc/PID/cgroup` or `/proc/PID/mountinfo`.
    pub(super) fn parse(path: &Path) -> Self {
        let below = path.strip_prefix("/").unwrap_or(path);
        let is_up = |step: &Component<'_>| *step == Component::ParentDir;
        let up = below.components().take_while(is_up).count();
        let down = below.components().skip(up).collect();
        Self { up, down }
    }

    /// A measure of how much lies below this place: less is more.
    pub(super) fn depth(&self) -> isize {
        self.down.components().count().cast_signed() - self.up.cast_signed()
    }

    /// Returns the path from here down to another place; `None` if it does not lie below.
    /// `namespace`: gives the path from here down to the namespace's root, which no path of `/proc` names.
    pub(super) fn way_to(
        &self,
        other: &Self,
        namespace: impl FnOnce() -> Option<PathBuf>,
    ) -> Option<PathBuf> {
        if self.up == other.up {
            return other.down.strip_prefix(&self.down).ok().map(Path::to_owned);
        }
        // A place that lies beside the namespace's root shows nothing above that.
        if self.up < other.up || !self.down.as_os_str().is_empty() {
            return None;
        }
        let namespace = namespace()?;
        let steps: Vec<_> = namespace.components().collect();
        let common = steps.len().checked_sub(other.up)?;
        let way: PathBuf = steps[..common].iter().collect();
        Some(way.join(&other.down))
    }
}

/// The path of the namespace's root below a mount point. It does not change while the mount is there, unless
/// somebody renames a cgroup of v1. Clones share what is found.
#[derive(Debug, Clone, Default)]
pub(super) struct Root(Arc<Mutex<Option<PathBuf>>>);

impl Root {
    /// Returns the path, and looks for it only if it is not known or is gone.
    pub(super) fn below(&self, point: &Path, version: Version) -> Option<PathBuf> {
        self.or_find(point, || {
            let path = || {
                let own = Membership::all("self").ok()??;
                let own = own.into_iter().find(|cgroup| cgroup.is_of(version))?;
                Some(own.path)
            };
            let (own, found) = (path()?, find_own(point)?);
            // A wrong root would stay: this process may have been moved meanwhile.
            root_above(&found, &own).filter(|_| path().as_ref() == Some(&own))
        })
    }

    fn or_find(&self, point: &Path, find: impl FnOnce() -> Option<PathBuf>) -> Option<PathBuf> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.take_if(|root| !point.join(root).is_dir());
        if known.is_none() {
            *known = find();
        }
        known.clone()
    }
}

/// Looks for the cgroup that holds this process, and returns its path below the mount point.
fn find_own(point: &Path) -> Option<PathBuf> {
    let own = std::process::id().to_string();
    let mut dirs = vec![point.to_owned()];
    while let Some(dir) = dirs.pop() {
        // The list of a threaded cgroup cannot be read, and a cgroup can go meanwhile.
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        if pids.lines().any(|pid| pid == own) {
            return dir.strip_prefix(point).ok().map(Path::to_owned);
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.extend(inner.map(|entry| entry.path()));
    }
    None
}

/// Takes from the path of this process's cgroup the part that lies in the namespace, which is `inner`: its
/// path in the same hierarchy as the namespace shows it.
fn root_above(own: &Path, inner: &Path) -> Option<PathBuf> {
    let inner = Place::parse(inner);
    if inner.up > 0 || !own.ends_with(&inner.down) {
        return None;
    }
    let steps = inner.down.components().count();
    let all: Vec<_> = own.components().collect();
    Some(all[..all.len() - steps].iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(from: &str, to: &str) -> Option<PathBuf> {
        let namespace = || Some("kubepods/pod1/guard".into());
        Place::parse(Path::new(from)).way_to(&Place::parse(Path::new(to)), namespace)
    }

    #[test]
    fn on_the_host_a_path_is_as_it_is() {
        assert_eq!(way("/", "/a/b"), Some("a/b".into()));
        assert_eq!(way("/a", "/a/b"), Some("b".into()));
        assert_eq!(way("/a", "/a"), Some(PathBuf::new()));
        assert_eq!(way("/a", "/b"), None);
    }

    #[test]
    fn in_a_container_paths_lead_over_the_host() {
        assert_eq!(
            way("/../../..", "/../../../init.scope"),
            Some("init.scope".into())
        );
        assert_eq!(
            way("/../../..", "/../other"),
            Some("kubepods/pod1/other".into())
        );
        assert_eq!(
            way("/../../..", "/../../pod2/x"),
            Some("kubepods/pod2/x".into())
        );
        assert_eq!(way("/../../..", "/"), Some("kubepods/pod1/guard".into()));
        assert_eq!(
            way("/../../..", "/inner"),
            Some("kubepods/pod1/guard/inner".into())
        );
    }

    #[test]
    fn a_mount_of_the_container_does_not_show_the_host() {
        assert_eq!(way("/", "/../other"), None);
        assert_eq!(way("/..", "/../../pod2"), None);
        assert_eq!(way("/../other", "/inner"), None);
        assert_eq!(way("/../other", "/../other/x"), Some("x".into()));
    }

    #[test]
    fn the_root_is_above_the_path_in_the_same_hierarchy() {
        let root = |own, inner| root_above(Path::new(own), Path::new(inner));
        assert_eq!(root("pods/a/guard", "/guard"), Some("pods/a".into()));
        assert_eq!(root("pods/a", "/"), Some("pods/a".into()));
        assert_eq!(root("", "/"), Some(PathBuf::new()));
        // The process is above the namespace's root, or was moved meanwhile.
        assert_eq!(root("pods/a", "/../a"), None);
        assert_eq!(root("pods/a", "/b"), None);
    }

    #[test]
    fn the_hierarchy_is_searched_once() {
        let temp = tempfile::tempdir().expect("a folder");
        let (root, searches) = (Root::default(), std::cell::Cell::new(0));
        let find = |root: &Root, name: &str| {
            root.or_find(temp.path(), || {
                searches.set(searches.get() + 1);
                Some(name.into())
            })
        };
        fs::create_dir(temp.path().join("a")).expect("a folder");
        assert_eq!(find(&root, "a"), Some("a".into()));
        assert_eq!(find(&root.clone(), "b"), Some("a".into()));
        assert_eq!(searches.get(), 1);
        fs::rename(temp.path().join("a"), temp.path().join("b")).expect("a new name");
        assert_eq!(find(&root, "b"), Some("b".into()));
        assert_eq!(searches.get(), 2);
    }
}
