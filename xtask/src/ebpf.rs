//! `cargo xtask ebpf`: checks the BPF crate for its own target. The host's
//! clippy sees it only from outside.

use anyhow::Result;

use crate::{
    build, run,
    setup::{self, Needs},
};

pub(crate) fn check() -> Result<()> {
    setup::setup(&Needs::default())?;
    run(build::toolchain()?
        .cargo("check")
        .current_dir(build::workspace())
        .args(["--package", "freezer-guard-ebpf", "--target-dir"])
        .arg(build::ebpf_dir()))
}
