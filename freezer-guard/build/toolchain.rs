//! Where the toolchain that compiles the BPF programs is.
//!
//! One file for its two users: `build.rs` compiles with what [`Toolchain::find`]
//! finds, `cargo xtask setup` fetches what it looks for.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The folder for everything that is downloaded or made once:
/// `$FREEZER_GUARD_CACHE`, else `freezer-guard` in the user's cache folder.
pub(crate) fn cache_dir() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("FREEZER_GUARD_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("freezer-guard")))
        .or_else(|| Some(set("HOME")?.join(".cache/freezer-guard")))
        .unwrap_or_else(|| env::temp_dir().join("freezer-guard"))
}

/// Debian's compiler with a prebuilt `core` for BPF, as `cargo xtask setup`
/// unpacks it: a wrapper that can be called as `rustc`.
pub(crate) fn prebuilt_rustc() -> PathBuf {
    cache_dir().join("bpf-toolchain/rustc")
}

/// The `bpf-linker` that `cargo xtask setup` builds.
pub(crate) fn built_linker() -> PathBuf {
    cache_dir().join("bpf-linker/bin/bpf-linker")
}

/// A way to compile for `bpfel-unknown-none`.
pub(crate) enum Toolchain {
    /// Debian's compiler, unpacked into the cache, with a prebuilt `core`.
    Prebuilt {
        /// The wrapper around the unpacked compiler.
        rustc: PathBuf,
        /// `bpf-linker`, linked with the same LLVM.
        linker: PathBuf,
    },
    /// A rustup toolchain with the component `rust-src`: cargo builds `core`.
    RustSrc {
        /// Its name, as rustup knows it.
        name: String,
        /// The user's own `bpf-linker`.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// The toolchain in the cache if `cargo xtask setup` put one there, else a
    /// rustup toolchain with `rust-src` together with a `bpf-linker` in `PATH`.
    pub(crate) fn find() -> Option<Self> {
        let (rustc, linker) = (prebuilt_rustc(), built_linker());
        if rustc.is_file() && linker.is_file() {
            return Some(Self::Prebuilt { rustc, linker });
        }
        let linker = in_path("bpf-linker")?;
        let name = rust_src_toolchain()?;
        Some(Self::RustSrc { name, linker })
    }

    /// The `cargo` command that compiles the BPF programs, in this folder.
    pub(crate) fn build(&self, workspace: &Path, target_dir: &Path) -> Command {
        let mut command = self.cargo("build");
        command
            .current_dir(workspace)
            .args(["--locked", "--package", "freezer-guard-ebpf"])
            .args(["--features", "bpf", "--target-dir"])
            .arg(target_dir);
        command
    }

    /// A `cargo` command that compiles for BPF. `core`'s unstable parts are
    /// used, hence `RUSTC_BOOTSTRAP`.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let (mut command, linker) = match self {
            Self::Prebuilt { rustc, linker } => {
                let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
                command.arg(subcommand).env("RUSTC", rustc);
                (command, linker)
            }
            Self::RustSrc { name, linker } => {
                let mut command = Command::new("rustup");
                command
                    .args(["run", name, "cargo", subcommand, "-Z", "build-std=core"])
                    .env_remove("RUSTC");
                (command, linker)
            }
        };
        let flags = [
            "--cfg".into(),
            // One object serves all machines: the programs use none of aya's types of registers.
            "bpf_target_arch=\"x86_64\"".into(),
            format!("-Clinker={}", linker.display()),
            "-Clink-arg=--btf".into(),
            "-Cdebuginfo=2".into(),
        ];
        command
            .args(["--release", "--target", "bpfel-unknown-none"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CARGO_BUILD_TARGET")
            // A build script has it, a shell has not: aya's would be run anew for each.
            .env_remove("HOST");
        command
    }
}

/// The first rustup toolchain that has the component `rust-src`.
fn rust_src_toolchain() -> Option<String> {
    let stdout = |args: &[&str]| {
        let output = Command::new("rustup").args(args).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    stdout(&["toolchain", "list", "--quiet"])?
        .lines()
        .find(|name| {
            stdout(&["run", name, "rustc", "--print", "sysroot"]).is_some_and(|sysroot| {
                Path::new(sysroot.trim())
                    .join("lib/rustlib/src/rust/library/core")
                    .is_dir()
            })
        })
        .map(str::to_owned)
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}
