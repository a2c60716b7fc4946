//! `cargo xtask ebpf`: checks the BPF crate for its own target. The host's
//! clippy sees it only from outside.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{
    build, run,
    setup::{self, Needs},
    toolchain::Toolchain,
};

pub(crate) fn check() -> Result<()> {
    setup::setup(&Needs::default())?;
    run(toolchain()?
        .cargo("check")
        .current_dir(build::workspace())
        .args(["--package", "freezer-guard-ebpf", "--target-dir"])
        .arg(target_dir()))
}

/// Compiles the programs where freezer-guard's build script looks for them.
pub(crate) fn build() -> Result<()> {
    run(&mut toolchain()?.build(build::workspace(), &target_dir()))
        .context("build the BPF programs")
}

fn toolchain() -> Result<Toolchain> {
    Toolchain::find().context("no BPF toolchain: run `cargo xtask setup`")
}

/// `.cargo/config.toml` has it too.
fn target_dir() -> PathBuf {
    build::target_dir().join("ebpf")
}
