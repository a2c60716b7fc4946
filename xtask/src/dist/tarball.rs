//! The tarball, for a host with neither dpkg nor rpm.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Stage, VERSION, tree};
use crate::run;

/// The documents, below the top of every package.
const DOCUMENTS: &str = "usr/share/doc/freezer-guard";

/// Makes the tarball in `stage.out`.
pub(super) fn make(stage: &Stage) -> Result<PathBuf> {
    let name = format!("freezer-guard-{VERSION}-{}-linux", stage.machine.uname);
    let path = stage.out.join(format!("{name}.tar.gz"));
    let parent = tempfile::tempdir()?;
    let root = parent.path().join(&name);
    tree::unpack(&stage.deb(), &root)?;
    tree::remove_debians_own(&root)?;
    link_documents(&root)?;
    run(Command::new("tar")
        .args(["--create", "--sort=name", "--format=gnu"])
        .args(["--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mode=u=rwX,go=rX", &format!("--mtime=@{}", stage.time)])
        .args(["--use-compress-program", "gzip --no-name --best"])
        .arg("--file")
        .arg(&path)
        .arg("--directory")
        .arg(parent.path())
        .arg(&name))
    .context("make the tarball")?;
    Ok(path)
}

/// Links the documents at the top too, where a reader looks first.
fn link_documents(root: &Path) -> Result<()> {
    let documents = Path::new(DOCUMENTS);
    for entry in fs::read_dir(root.join(documents))? {
        let name = entry?.file_name();
        symlink(documents.join(&name), root.join(&name))
            .with_context(|| format!("link {}", name.display()))?;
    }
    Ok(())
}
