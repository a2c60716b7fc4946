//! `cargo xtask setup`: everything a fresh machine lacks.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cache,
    debian::{Apt, host_release},
    image::USERLANDS,
    kernel::KERNELS,
    run,
    toolchain::{self, Toolchain},
    tools,
};

/// The release of bpf-linker that goes with LLVM 22, the compiler's own.
const BPF_LINKER: &str = "0.13.0";

/// The release of cargo-deb that makes our package.
const CARGO_DEB: &str = "3.8.0";

type Fetch = Box<dyn Fn(&Step) -> Result<()>>;

struct Step {
    name: String,
    there: fn(&Step) -> bool,
    path: PathBuf,
    fetch: Fetch,
}

impl Step {
    fn new(
        name: impl Into<String>,
        path: PathBuf,
        there: fn(&Self) -> bool,
        fetch: impl Fn(&Self) -> Result<()> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            there,
            path,
            fetch: Box::new(fetch),
        }
    }
}

fn exists(step: &Step) -> bool {
    step.path.exists()
}

/// What the programs are made with.
fn steps_to_build() -> Vec<Step> {
    vec![
        Step::new(
            "BPF compiler (Debian's, unpacked only; ~150 MB)",
            toolchain::prebuilt_rustc(),
            |step| exists(step) || matches!(Toolchain::find(), Some(Toolchain::RustSrc { .. })),
            |_| fetch_compiler(),
        ),
        Step::new(
            "bpf-linker (compiled here, about a minute)",
            toolchain::built_linker(),
            |_| Toolchain::find().is_some(),
            |_| build_linker(),
        ),
    ]
}

/// What the package is made with.
fn steps_to_package() -> Vec<Step> {
    vec![Step::new(
        "cargo-deb (compiled here, about a minute)",
        cargo_deb(),
        exists,
        |_| build_cargo_deb(),
    )]
}

fn steps_for_guests() -> Vec<Step> {
    let mut steps = vec![Step::new(
        "QEMU (Debian's, unpacked only; ~40 MB)",
        tools::dir(),
        exists,
        |_| tools::fetch(),
    )];
    for kernel in &KERNELS {
        steps.push(Step::new(
            format!("kernel {} (~40 MB)", kernel.name),
            kernel.dir(),
            exists,
            |_| kernel.fetch(),
        ));
    }
    for userland in USERLANDS {
        let name = userland.name();
        steps.push(Step::new(
            format!("packages of the guest from {name}: CRIU, systemd, podman … (~100 MB)"),
            userland.packages(),
            exists,
            |_| userland.fetch_packages(),
        ));
        steps.push(Step::new(
            format!("image initramfs, {name}"),
            userland.initramfs(),
            exists,
            |_| userland.make_initramfs(),
        ));
        steps.push(Step::new(
            format!("image systemd, {name}"),
            userland.disk(),
            exists,
            |_| userland.make_disk(),
        ));
    }
    steps
}

/// Fetches what is missing to build and to run guests. With `all`, also what
/// makes the package, and says what is there.
pub(crate) fn setup(all: bool) -> Result<()> {
    let mut steps = steps_to_build();
    steps.extend(steps_for_guests());
    if all {
        steps.extend(steps_to_package());
    }
    take(&steps, all)
}

/// Fetches what is missing to build and to package, and nothing for guests.
pub(crate) fn setup_to_package() -> Result<()> {
    let mut steps = steps_to_build();
    steps.extend(steps_to_package());
    take(&steps, false)
}

fn take(steps: &[Step], verbose: bool) -> Result<()> {
    if !verbose && steps.iter().all(|step| (step.there)(step)) {
        return Ok(());
    }
    let _lock = cache::lock()?;
    let count = steps.len();
    for (number, step) in steps
        .iter()
        .enumerate()
        .map(|(index, step)| (index + 1, step))
    {
        if (step.there)(step) {
            eprintln!("[{number}/{count}] {}: there", step.name);
            continue;
        }
        eprintln!("[{number}/{count}] {} …", step.name);
        let start = Instant::now();
        (step.fetch)(step).with_context(|| format!("set up {}", step.name))?;
        ensure!(
            (step.there)(step),
            "{} is still missing after its set-up",
            step.name
        );
        eprintln!(
            "[{number}/{count}] {}: done in {} s",
            step.name,
            start.elapsed().as_secs()
        );
    }
    eprintln!("everything is there, in {}", cache::dir().display());
    Ok(())
}

/// Debian's `rustc-web` packages would replace a user's own `rustc`: unpack them.
fn fetch_compiler() -> Result<()> {
    let apt = Apt::open(&host_release()?)?;
    let std = apt.newest("^libstd-rust-web-[0-9.]+$")?;
    let rustc = toolchain::prebuilt_rustc();
    let dir = rustc.parent().context("the wrapper lies in a folder")?;
    cache::put(dir, |unfinished| {
        let packages = [
            "rustc-web",
            &std,
            "libstd-rust-web-dev",
            "libstd-rust-web-dev-bpf",
            "libllvm22",
        ];
        apt.unpack(&packages, unfinished)?;
        let usr = dir.join("usr");
        let usr = usr.display();
        let wrapper = unfinished.join("rustc");
        fs::write(
            &wrapper,
            format!(
                "#!/bin/sh\n\
                 export LD_LIBRARY_PATH=\"{usr}/lib/x86_64-linux-gnu\"\n\
                 exec \"{usr}/bin/rustc\" --sysroot \"{usr}\" \"$@\"\n"
            ),
        )?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(())
    })
}

/// Builds bpf-linker against the LLVM that came with the compiler.
fn build_linker() -> Result<()> {
    let compiler = toolchain::prebuilt_rustc();
    let compiler = compiler.parent().context("the wrapper lies in a folder")?;
    let llvm = compiler.join("usr/lib/x86_64-linux-gnu/libLLVM.so.22.1");
    ensure!(
        llvm.exists(),
        "{} is missing: remove {} and try again",
        llvm.display(),
        compiler.display()
    );
    let prefix = cache::dir().join("llvm");
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib)?;
    for name in ["libLLVM.so", "libLLVM.so.22.1"] {
        let link = lib.join(name);
        if !link.is_symlink() {
            symlink(&llvm, &link)?;
        }
    }
    let root = toolchain::built_linker();
    let root = root
        .ancestors()
        .nth(2)
        .context("the linker lies in root/bin")?;
    run(cargo_install("bpf-linker", BPF_LINKER, root)
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", &prefix))
}

/// The `cargo-deb` that is built here. Another release lies elsewhere.
pub(crate) fn cargo_deb() -> PathBuf {
    cache::dir().join(format!("cargo-deb-{CARGO_DEB}/bin/cargo-deb"))
}

fn build_cargo_deb() -> Result<()> {
    let program = cargo_deb();
    let root = program
        .ancestors()
        .nth(2)
        .context("the program lies in root/bin")?;
    run(&mut cargo_install("cargo-deb", CARGO_DEB, root))
}

fn cargo_install(name: &str, version: &str, root: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["install", "--quiet", name, "--version", version, "--locked"])
        .arg("--root")
        .arg(root);
    cargo
}
