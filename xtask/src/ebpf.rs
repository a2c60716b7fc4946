//! `cargo xtask ebpf`: checks the BPF crate for its own target. The host's
//! clippy sees it only from outside.

use anyhow::{Context as _, Result};

use crate::{
    build, run,
    setup::{self, Needs},
    toolchain::Toolchain,
};

pub(crate) fn check() -> Result<()> {
    setup::setup(&Needs::default())?;
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
