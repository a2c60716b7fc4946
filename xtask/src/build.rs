//! Builds the programs that go into a guest: static, so that any root will do.
//! `dist` packs the `freezer-guard` that guests test. (Only the arm64 guest of a change gets a build of
//! another profile.)

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{cross, machine::Machine, object, run, toolchain::Toolchain};

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
    fn folder(self, machine: &Machine) -> PathBuf {
        let name = match self {
            Self::Release => "release",
            Self::Dev => "debug",
        };
        target_dir().join(machine.target).join(name)
    }
}

/// Where `freezer-guard` is, once [`programs`] has compiled it as it ships.
pub(crate) fn freezer_guard(machine: &Machine) -> PathBuf {
    Profile::Release.folder(machine).join("freezer-guard")
}

/// The programs of guests.
pub(crate) struct Programs(Vec<(&'static Machine, Vec<PathBuf>)>);

impl Programs {
    /// Compiles the programs for these machines.
    pub(crate) fn compile(
        profile: impl Fn(&Machine) -> Profile,
        machines: impl Iterator<Item = &'static Machine>,
    ) -> Result<Self> {
        machines
            .map(|machine| Ok((machine, programs(profile(machine), machine)?)))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Returns the programs for this machine.
    pub(crate) fn of(&self, machine: &Machine) -> Result<&[PathBuf]> {
        let mut all = self.0.iter();
        let found = all.find(|(compiled, _)| *compiled == machine);
        found
            .map(|(_, programs)| &**programs)
            .with_context(|| format!("no program is compiled for {}", machine.name))
    }
}

/// `freezer-guard` and the guest's own programs, for this machine.
pub(crate) fn programs(profile: Profile, machine: &Machine) -> Result<Vec<PathBuf>> {
    thread::scope(|scope| {
        // cargo compiles them last, one crate after the other, if it is left to it.
        let ebpf = scope.spawn(ebpf);
        compile(profile, machine)?;
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
        let path = profile.folder(machine).join(name);
        fs::metadata(&path).with_context(|| format!("find {}", path.display()))?;
        Ok(path)
    })
    .into_iter()
    .collect()
}

fn compile(profile: Profile, machine: &Machine) -> Result<()> {
    let mut cargo = cargo();
    if machine.is_foreign() {
        cross::compile_with(&mut cargo, machine)?;
    }
    run(cargo
        .args(["build", "--locked", "--bins", "--target", machine.target])
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
