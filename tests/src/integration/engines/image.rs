//! The root of every container, as a directory and as an image.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::super::process::run;

/// The image's name.
pub(super) const NAME: &str = "localhost/count:1";

/// Makes a root that needs nothing but the test's own program.
pub(super) fn make_root(root: &Path) -> Result<()> {
    for dir in ["count", "proc", "sys", "dev", "etc", "run", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy("/guest/bin/guest-tool", root.join("guest-tool"))?;
    Ok(())
}

/// Returns an archive in the format of `docker save`. The first caller makes it.
pub(super) fn archive() -> Result<PathBuf> {
    let path = PathBuf::from("/root/image.tar");
    if path.exists() {
        return Ok(path);
    }
    let dir = Path::new("/root/image");
    make_root(&dir.join("root"))?;
    let layer = dir.join("layer.tar");
    tar(&dir.join("root"), &layer, &["."])?;
    let sum = run(Command::new("sha256sum").arg(&layer))?
        .expect(0)?
        .stdout;
    let sum = sum.split_whitespace().next().context("a checksum")?;
    // A pod's own container runs that. It can write nowhere.
    let program = ["/guest-tool", "idle"];
    // Go's name of the machine.
    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": program },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
    });
    fs::write(dir.join("config.json"), serde_json::to_vec(&config)?)?;
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [NAME],
        "Layers": ["layer.tar"],
    }]);
    fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    tar(dir, &path, &["manifest.json", "config.json", "layer.tar"])?;
    fs::remove_dir_all(dir)?;
    Ok(path)
}

/// Packs these files of a directory.
pub(super) fn tar(dir: &Path, archive: &Path, files: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir).arg("-cf").arg(archive).args(files);
    run(&mut tar)?.expect(0)?;
    Ok(())
}

/// Imports the image into one of containerd's namespaces, unless it is there.
pub(super) fn import(namespace: &str) -> Result<()> {
    if names(namespace)?.lines().any(|name| name == NAME) {
        return Ok(());
    }
    let mut ctr = Command::new("ctr");
    ctr.args(["--namespace", namespace, "images", "import"]);
    run(ctr.arg(archive()?))?.expect(0)?;
    Ok(())
}

/// Returns the names of containerd's images, each on a line.
pub(super) fn names(namespace: &str) -> Result<String> {
    let mut ctr = Command::new("ctr");
    ctr.args(["--namespace", namespace, "images", "ls", "-q"]);
    Ok(run(&mut ctr)?.expect(0)?.stdout)
}
