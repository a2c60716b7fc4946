//! `cargo xtask setup`: everything a fresh machine lacks. Every other command fetches its
//! own part of that.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    build::{Profile, Programs},
    cache,
    config::Image,
    cross,
    debian::{Apt, host_release},
    image::{USERLANDS, Userland},
    kernel::{KERNELS, Kernel},
    machine::{MACHINES, Machine},
    mdbook, packaging_tools, run,
    toolchain::{self, Toolchain},
    tools,
};

mod step;

use step::Step;

/// The release of bpf-linker that goes with LLVM 22, the compiler's own.
const BPF_LINKER: &str = "0.13.0";

/// The release of cargo-deb that makes our package.
const CARGO_DEB: &str = "3.8.0";

/// The release of youki for the guests' suite of engines. Debian has no package of it.
const YOUKI: &str = "0.7.0";

/// The needs of a command, besides the toolchain of the BPF programs.
#[derive(Default)]
pub(crate) struct Needs {
    guests: Vec<(&'static Kernel, Image)>,
    /// Machines to compile for, besides those of the guests.
    machines: Vec<&'static Machine>,
    package: bool,
    engines: bool,
    book: bool,
    release: bool,
}

impl Needs {
    /// Every kernel with both images, the release files and the book.
    fn everything() -> Self {
        let images = [Image::Initramfs, Image::Systemd];
        let guests = KERNELS
            .iter()
            .flat_map(|kernel| images.map(|image| (kernel, image)));
        Self {
            guests: guests.collect(),
            machines: MACHINES.to_vec(),
            package: true,
            engines: true,
            book: true,
            release: true,
        }
    }

    /// Kernels and images of these guests.
    pub(crate) fn guests(guests: impl IntoIterator<Item = (&'static Kernel, Image)>) -> Self {
        Self {
            guests: guests.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Adds the tool that makes the package.
    pub(crate) fn with_package(self) -> Self {
        Self {
            package: true,
            ..self
        }
    }

    /// Adds the engines that are compiled here.
    pub(crate) fn with_engines(self) -> Self {
        Self {
            engines: true,
            ..self
        }
    }

    /// Adds the tool that builds the book.
    pub(crate) fn with_book(self) -> Self {
        Self { book: true, ..self }
    }

    /// Adds the tools that make and check the release files.
    pub(crate) fn with_release(self) -> Self {
        Self {
            package: true,
            release: true,
            ..self
        }
    }

    /// Adds the compiler for this machine.
    pub(crate) fn with_machine(mut self, machine: &'static Machine) -> Self {
        self.machines.push(machine);
        self
    }

    fn boots_on(&self, machine: &Machine) -> bool {
        let mut guests = self.guests.iter();
        guests.any(|(kernel, _)| kernel.machine() == machine)
    }

    /// Returns whether something is compiled for this machine.
    fn compiles_for(&self, machine: &'static Machine) -> bool {
        self.boots_on(machine) || self.machines.contains(&machine)
    }

    fn boots(&self, kernel: &Kernel) -> bool {
        let mut guests = self.guests.iter();
        guests.any(|(wanted, _)| wanted.name == kernel.name)
    }

    fn uses(&self, userland: &Userland, image: Image) -> bool {
        let mut guests = self.guests.iter();
        guests.any(|(kernel, wanted)| kernel.userland.name() == userland.name() && *wanted == image)
    }

    /// Downloads and images, in this order.
    fn to_fetch(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for machine in MACHINES {
            if self.boots_on(machine) {
                let name = format!(
                    "QEMU for {} (Debian's, unpacked only; ~40 MB)",
                    machine.name
                );
                let fetch = || tools::fetch(machine);
                steps.push(Step::file(name, tools::dir(machine), fetch));
            }
        }
        if self.book {
            steps.push(mdbook_step());
        }
        if self.release {
            steps.push(Step::file(
                "rpm, lintian, rpmlint, promtool, skopeo (Debian's, unpacked only; ~110 MB)",
                packaging_tools::dir(),
                packaging_tools::fetch,
            ));
        }
        for kernel in KERNELS.iter().filter(|kernel| self.boots(kernel)) {
            let name = format!("kernel {} (~40 MB)", kernel.name);
            steps.push(Step::file(name, kernel.dir(), || kernel.fetch()));
        }
        for userland in USERLANDS {
            let initramfs = self.uses(userland, Image::Initramfs);
            let disk = self.uses(userland, Image::Systemd);
            let name = userland.name();
            if initramfs || disk {
                steps.push(Step::file(
                    format!("packages of the guest from {name}: CRIU, systemd, engines … (~100 to 200 MB)"),
                    userland.packages(),
                    || userland.fetch_packages(),
                ));
            }
            if initramfs {
                let step = format!("image initramfs, {name}");
                steps.push(Step::file(step, userland.initramfs(), || {
                    userland.make_initramfs()
                }));
            }
            if disk {
                let step = format!("image systemd, {name}");
                steps.push(Step::file(step, userland.disk(), || userland.make_disk()));
            }
        }
        steps
    }

    /// Tools to compile here, meanwhile. bpf-linker links with the LLVM of the compiler.
    fn to_compile(&self) -> Vec<Step> {
        let is_cross = MACHINES
            .into_iter()
            .any(|machine| machine.is_foreign() && self.compiles_for(machine));
        // It compiles for other machines too.
        let is_other =
            move || !is_cross && matches!(Toolchain::find(), Some(Toolchain::RustSrc { .. }));
        let mut steps = vec![
            Step::new(
                "BPF compiler (Debian's, unpacked only; ~150 MB)",
                move || toolchain::prebuilt_rustc().exists() || is_other(),
                fetch_compiler,
            ),
            Step::new(
                "bpf-linker (compiled here, about a minute)",
                || Toolchain::find().is_some(),
                build_linker,
            ),
        ];
        for machine in MACHINES {
            if machine.is_foreign() && self.compiles_for(machine) {
                let name = format!(
                    "linker and libraries for {} (Debian's, unpacked only; ~70 MB)",
                    machine.name
                );
                let fetch = || cross::fetch(machine);
                steps.push(Step::file(name, cross::dir(machine), fetch));
            }
        }
        if self.package {
            steps.push(Step::file(
                "cargo-deb (compiled here, about a minute)",
                cargo_deb(),
                build_cargo_deb,
            ));
        }
        if self.engines {
            steps.push(Step::file(
                "youki (compiled here, about two minutes)",
                youki(),
                build_youki,
            ));
        }
        steps
    }
}

/// Fetches everything.
pub(crate) fn everything() -> Result<()> {
    take(&Needs::everything(), || Ok(()))
}

/// Fetches the missing parts, in silence if there are none.
pub(crate) fn setup(needs: &Needs) -> Result<()> {
    setup_and(needs, || Ok(()))
}

/// Fetches the missing parts, and compiles the programs of the guests meanwhile.
pub(crate) fn guest_programs(
    needs: &Needs,
    profile: impl Fn(&Machine) -> Profile,
) -> Result<Programs> {
    let machines = MACHINES.into_iter().filter(|one| needs.boots_on(one));
    setup_and(needs, || Programs::compile(profile, machines))
}

/// Fetches mdBook, and nothing else, if it is missing.
pub(crate) fn book() -> Result<()> {
    let step = mdbook_step();
    if (step.there)() {
        return Ok(());
    }
    let _lock = cache::lock()?;
    step.take()
}

fn mdbook_step() -> Step {
    Step::file(
        "mdBook (Debian's, unpacked only; ~9 MB)",
        mdbook::dir(),
        mdbook::fetch,
    )
}

fn setup_and<T>(needs: &Needs, compile: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut steps = needs.to_compile();
    steps.extend(needs.to_fetch());
    match steps.iter().all(|step| (step.there)()) {
        true => compile(),
        false => take(needs, compile),
    }
}

/// Downloads while it compiles: the tools, then what is compiled with them.
fn take<T>(needs: &Needs, compile: impl FnOnce() -> Result<T>) -> Result<T> {
    let _lock = cache::lock()?;
    let all = |steps: Vec<Step>| steps.iter().try_for_each(Step::take);
    thread::scope(|scope| {
        let fetch = scope.spawn(|| all(needs.to_fetch()));
        let compiled = all(needs.to_compile()).and_then(|()| compile());
        let fetched = fetch.join();
        fetched.map_err(|_| anyhow!("a thread that downloads has panicked"))??;
        let compiled = compiled?;
        eprintln!("the set-up is complete: {}", cache::dir().display());
        Ok(compiled)
    })
}

/// Debian's `rustc-web` packages would replace a user's own `rustc`: unpack them.
fn fetch_compiler() -> Result<()> {
    let apt = Apt::open(&host_release()?, Machine::host())?;
    let std = apt.newest("^libstd-rust-web-[0-9.]+$")?;
    let rustc = toolchain::prebuilt_rustc();
    let dir = rustc
        .parent()
        .context("the path of the compiler has a parent")?;
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
                 export LD_LIBRARY_PATH=\"{usr}/lib/{}\"\n\
                 exec \"{usr}/bin/rustc\" --sysroot \"{usr}\" \"$@\"\n",
                Machine::host().libraries
            ),
        )?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(())
    })
}

/// Builds bpf-linker against the LLVM that came with the compiler.
fn build_linker() -> Result<()> {
    let compiler = toolchain::prebuilt_rustc();
    let compiler = compiler
        .parent()
        .context("the path of the compiler has a parent")?;
    let libraries = compiler.join("usr/lib").join(Machine::host().libraries);
    let llvm = libraries.join("libLLVM.so.22.1");
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
        .context("the path of the linker ends with bin/bpf-linker")?;
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
        .context("the path of the program ends with bin/cargo-deb")?;
    run(&mut cargo_install("cargo-deb", CARGO_DEB, root))
}

/// The `youki` that is built here, for the guests.
pub(crate) fn youki() -> PathBuf {
    cache::dir().join(format!("youki-{YOUKI}/bin/youki"))
}

/// Builds it static, so that every guest can run it, and without libseccomp, which the machine
/// may not have.
fn build_youki() -> Result<()> {
    let program = youki();
    let root = program
        .ancestors()
        .nth(2)
        .context("the path of the program ends with bin/youki")?;
    run(cargo_install("youki", YOUKI, root)
        .args(["--no-default-features", "--features", "v2,systemd"])
        .args(["--target", Machine::host().target])
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .env("RUSTFLAGS", "-C target-feature=+crt-static"))
}

/// These tools run for seconds: optimising them would take longer.
fn cargo_install(name: &str, version: &str, root: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["install", name, "--version", version, "--locked"])
        .arg("--root")
        .arg(root)
        .envs([
            ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
        ]);
    cargo
}
