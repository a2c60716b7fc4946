//! `cargo xtask ebpf`: checks the BPF crate for its own target. The host's
//! clippy sees it only from outside.

use anyhow::{Context as _, Result};

use crate::{build, run, setup, toolchain::Toolchain};

pub(crate) fn check() -> Result<()> {
    setup::setup(false)?;
    let toolchain = Toolchain::find().context("no BPF toolchain: run `cargo xtask setup`")?;
    run(toolchain
        .cargo("check")
        .current_dir(build::workspace())
        .args([
            "--package",
            "freezer-guard-ebpf",
            "--target-dir",
            "target/ebpf",
        ]))
}
