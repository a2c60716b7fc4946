//! Cgroups that we make.

use std::{
    fs, mem,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::Error;

/// Cgroups that were made, and that go again with this unless they are kept. Those that
/// have come to hold tasks stay.
#[derive(Debug, Default)]
pub struct CreatedCgroups(Vec<PathBuf>);

impl CreatedCgroups {
    /// Makes the cgroup with this path, and those above it, as far as they are missing.
    ///
    /// # Errors
    /// When it would lie in no cgroup, or cannot be made.
    pub fn make(&mut self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Io {
            operation: "create",
            path: path.to_owned(),
            source,
        };
        let missing: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
        let there = path.ancestors().nth(missing.len());
        let there = there.ok_or_else(|| Error::NotACgroup(path.to_owned()))?;
        let kind = statfs(there).map_err(|errno| failed(errno.into()))?;
        if ![CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&kind.filesystem_type()) {
            return Err(Error::NotACgroup(path.to_owned()));
        }
        for path in missing.into_iter().rev() {
            fs::create_dir(path).map_err(failed)?;
            self.0.push(path.to_owned());
        }
        Ok(())
    }

    /// Whether none was missing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets them stay.
    pub fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedCgroups {
    fn drop(&mut self) {
        for path in mem::take(&mut self.0).iter().rev() {
            // It may have tasks. Empty, it does no harm.
            let _ = fs::remove_dir(path);
        }
    }
}
