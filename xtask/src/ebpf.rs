//! `cargo xtask ebpf`: checks the BPF crate for its own target. No
//! other target can compile it.

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
        .args(["--package", "freezer-guard-ebpf", "--features", "bpf"])
        .arg("--target-dir")
        .arg(build::ebpf_dir()))
}
