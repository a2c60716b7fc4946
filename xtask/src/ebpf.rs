//! `cargo xtask ebpf`: clippy for the BPF crate, which the host's clippy sees
//! only from outside.

use anyhow::{Context as _, Result};

use crate::{build, run, setup, toolchain::Toolchain};

pub(crate) fn clippy() -> Result<()> {
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
