//! Builds the programs that go into a guest: static, so that any root will do.
//! `freezer-guard` among them is what `dist` packs: what is tested is what ships.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{object, run, toolchain::Toolchain};

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

/// Cargo's directory.
pub(crate) fn target_dir() -> PathBuf {
    workspace().join("target")
}

/// How the programs of a guest are compiled.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// As they ship.
    Release,
    /// In half the time, for a first look.
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }

    /// The directory in cargo's, where the programs are.
    fn folder(self) -> PathBuf {
        let name = match self {
            Self::Release => "release",
            Self::Dev => "debug",
        };
        target_dir().join(TARGET).join(name)
    }
}

/// Where `freezer-guard` is, once [`guest_programs`] has compiled it as it ships.
pub(crate) fn freezer_guard() -> PathBuf {
    Profile::Release.folder().join("freezer-guard")
}

/// `freezer-guard` and the guest's own programs.
pub(crate) fn guest_programs(profile: Profile) -> Result<Vec<PathBuf>> {
    thread::scope(|scope| {
        // cargo compiles them last, one crate after the other, if it is left to it.
        let ebpf = scope.spawn(ebpf);
        compile(profile)?;
        ebpf.join()
            .map_err(|_| anyhow!("a thread that compiles has panicked"))?
    })?;
    [
        "freezer-guard",
        "freezer-guard-bench",
        "guest-init",
        "guest-tool",
        "integration",
    ]
    .map(|name| {
        let path = profile.folder().join(name);
        fs::metadata(&path).with_context(|| format!("find {}", path.display()))?;
        Ok(path)
    })
    .into_iter()
    .collect()
}

fn compile(profile: Profile) -> Result<()> {
    run(cargo()
        .args(["build", "--locked", "--bins", "--target", TARGET])
        .args(["--profile", profile.name()])
        .args(["--package", "freezer-guard"])
        .args(["--package", "freezer-guard-bench"])
        .args(["--package", "freezer-guard-tests", "--target-dir"])
        .arg(target_dir())
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=debuginfo",
        ))
    .context("compile the programs for the guests")
}

/// Compiles the programs where freezer-guard's build script looks for them.
fn ebpf() -> Result<()> {
    run(&mut toolchain()?.build(workspace(), &ebpf_dir())).context("compile the BPF programs")?;
    object::check(&ebpf_dir().join("bpfel-unknown-none/release/freezer-guard-ebpf"))
}

/// The toolchain of the BPF programs.
pub(crate) fn toolchain() -> Result<Toolchain> {
    Toolchain::find().context("there is no compiler for BPF: run `cargo xtask setup`")
}

/// Cargo's directory for them. `.cargo/config.toml` has it too.
pub(crate) fn ebpf_dir() -> PathBuf {
    target_dir().join("ebpf")
}
