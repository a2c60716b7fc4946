//! Compiles the BPF programs and leaves the object where the library embeds it.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use object::{build::elf, elf::SHT_STRTAB};
use toolchain::Toolchain;

/// Cargo's folder for the BPF programs. `.cargo/config.toml` sets it for all profiles.
const TARGET_DIR: &str = "FREEZER_GUARD_EBPF_TARGET_DIR";

fn main() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("this crate lies in a workspace")?;
    for source in [
        "freezer-guard-abi",
        "freezer-guard-ebpf",
        "freezer-guard/build",
        "Cargo.lock",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    for file in [toolchain::prebuilt_rustc(), toolchain::built_linker()] {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let Some(toolchain) = Toolchain::find() else {
        bail!(
            "no toolchain for BPF was found. Run this, which needs no root:\n\n    \
             cargo xtask setup\n\n\
             or, with rustup: `rustup toolchain install nightly --component rust-src` \
             and `cargo binstall bpf-linker`"
        )
    };
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    println!("cargo::rerun-if-env-changed={TARGET_DIR}");
    let target_dir = env::var_os(TARGET_DIR).map_or(out_dir.join("ebpf"), PathBuf::from);
    let status = toolchain
        .build(workspace, &target_dir)
        .status()
        .context("run cargo for the BPF programs")?;
    if !status.success() {
        bail!("the BPF programs do not compile");
    }
    let object = target_dir.join("bpfel-unknown-none/release/freezer-guard-ebpf");
    let bytes = fs::read(&object).with_context(|| format!("read {}", object.display()))?;
    let bytes = without_debug_sections(&bytes)
        .with_context(|| format!("remove debug sections from {}", object.display()))?;
    fs::write(out_dir.join("freezer-guard.bpf.o"), &bytes)?;
    // Tells whether what is pinned was loaded from this very object.
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    println!(
        "cargo::rustc-env=FREEZER_GUARD_OBJECT_ID={:016x}",
        hasher.finish()
    );
    Ok(())
}

/// Removes the debug sections, from which the linker has made the BTF. They are three quarters
/// of the object, and every cold start would parse them.
fn without_debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = elf::Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug") || name.starts_with(".rel.debug");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table, `object` in two.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = elf::SectionData::SectionString;
    let mut smaller = Vec::new();
    builder.write(&mut smaller)?;
    Ok(smaller)
}
