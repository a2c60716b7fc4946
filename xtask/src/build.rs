//! Builds the programs that go into a guest: static, so that any root will do.
//! `freezer-guard` among them is what `dist` packs: what is tested is what ships.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::run;

pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The top of the workspace.
pub(crate) fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// A cargo command in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Cargo's folder for the static programs.
pub(crate) fn target_dir() -> PathBuf {
    workspace().join("target/guest")
}

/// `freezer-guard` and the guest's own programs.
pub(crate) fn guest_programs() -> Result<Vec<PathBuf>> {
    let target = target_dir();
    run(cargo()
        .args([
            "build",
            "--locked",
            "--release",
            "--bins",
            "--target",
            TARGET,
        ])
        .args([
            "--package",
            "freezer-guard",
            "--package",
            "freezer-guard-tests",
            "--target-dir",
        ])
        .arg(&target)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=debuginfo",
        ))
    .context("build the programs of the guest")?;
    let release = target.join(TARGET).join("release");
    ["freezer-guard", "guest-init", "guest-tool", "integration"]
        .map(|name| {
            let path = release.join(name);
            fs::metadata(&path).with_context(|| format!("find {}", path.display()))?;
            Ok(path)
        })
        .into_iter()
        .collect()
}
