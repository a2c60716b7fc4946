//! `cargo xtask setup`: everything a fresh machine lacks.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::geteuid;

use crate::{
    cache,
    debian::{Apt, host_release},
    image,
    kernel::KERNELS,
    run,
    toolchain::{self, Toolchain},
};

/// The release of bpf-linker that goes with LLVM 22, the compiler's own.
const BPF_LINKER: &str = "0.13.0";

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

fn steps() -> Vec<Step> {
    let mut steps = vec![
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
    ];
    for kernel in &KERNELS {
        steps.push(Step::new(
            format!("kernel {} (~40 MB)", kernel.name),
            kernel.dir(),
            exists,
            |_| kernel.fetch(),
        ));
    }
    steps.push(Step::new(
        "packages of the guest: CRIU, systemd, strace … (~40 MB)",
        image::packages(),
        exists,
        |_| image::fetch_packages(),
    ));
    steps.push(Step::new(
        "image initramfs",
        image::initramfs(),
        exists,
        |step| image::make_initramfs(&step.path),
    ));
    steps.push(Step::new("image systemd", image::disk(), exists, |step| {
        image::make_disk(&step.path)
    }));
    // Last: without root it stops here, with all the rest in place.
    steps.push(Step::new(
        "QEMU",
        PathBuf::new(),
        |_| qemu_is_there(),
        |_| install_qemu(),
    ));
    steps
}

/// Fetches what is missing; with `verbose` says also what is there.
pub(crate) fn setup(verbose: bool) -> Result<()> {
    let steps = steps();
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

fn qemu_is_there() -> bool {
    Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn install_qemu() -> Result<()> {
    const INSTALL: [&str; 5] = [
        "install",
        "-y",
        "--no-install-recommends",
        "qemu-system-x86",
        "e2fsprogs",
    ];
    ensure!(
        geteuid().is_root(),
        "QEMU is the one thing that has to be installed. Run this, then try again:\n\n    \
         sudo apt-get update && sudo apt-get {}\n",
        INSTALL.join(" ")
    );
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    run(Command::new("apt-get")
        .arg("-qq")
        .args(INSTALL)
        .env("DEBIAN_FRONTEND", "noninteractive"))
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
    run(Command::new("cargo")
        .args([
            "install",
            "--quiet",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
        ])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(root)
        .env("LLVM_PREFIX", &prefix))
}
