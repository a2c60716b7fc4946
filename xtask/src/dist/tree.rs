//! The files of a package, unpacked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::run;

/// Unpacks the files of a Debian package.
pub(super) fn unpack(deb: &Path, into: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(into))
}

/// Returns everything below a directory, by relative paths in their order.
pub(super) fn list(top: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
            all.push(entry.path().strip_prefix(top)?.to_owned());
        }
    }
    all.sort();
    Ok(all)
}

/// Removes the files for Debian's own tools. CHANGELOG.md and the licences have the same content.
pub(super) fn remove_debians_own(tree: &Path) -> Result<()> {
    let share = tree.join("usr/share");
    fs::remove_dir_all(share.join("lintian")).context("remove the overrides for lintian")?;
    for name in ["changelog.gz", "copyright"] {
        let path = share.join("doc/freezer-guard").join(name);
        fs::remove_file(path).with_context(|| format!("remove {name}"))?;
    }
    Ok(())
}
