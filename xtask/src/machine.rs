//! The machines that freezer-guard is compiled for and tested on: the names that rustc, Debian, QEMU and
//! others have for them. (The programs need no such table: the kernel's BTF has the registers, and libc
//! the numbers of system calls.)

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use oci_spec::image::Arch;

/// A kind of machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Debian's name of it, and that of `--arch`.
    pub(crate) name: &'static str,
    /// `uname -m`, and RPM's name.
    pub(crate) uname: &'static str,
    /// What rustc compiles for.
    pub(crate) target: &'static str,
    /// Debian's directory of its libraries, below `usr/lib`.
    pub(crate) libraries: &'static str,
    /// The loader of its programs, below `usr`.
    pub(crate) loader: &'static str,
    /// QEMU's program, and Debian's package of that.
    pub(crate) qemu: &'static str,
    pub(crate) qemu_package: &'static str,
    /// QEMU's options for a board and a CPU.
    pub(crate) board: [&'static str; 4],
    /// The serial port that is the kernel's console.
    pub(crate) console: &'static str,
    /// Its name in container images.
    pub(crate) container: Arch,
}

pub(crate) static AMD64: Machine = Machine {
    name: "amd64",
    uname: "x86_64",
    target: "x86_64-unknown-linux-gnu",
    libraries: "x86_64-linux-gnu",
    loader: "lib64/ld-linux-x86-64.so.2",
    qemu: "qemu-system-x86_64",
    qemu_package: "qemu-system-x86",
    board: ["-M", "q35", "-cpu", "max"],
    console: "ttyS0",
    container: Arch::Amd64,
};

pub(crate) static ARM64: Machine = Machine {
    name: "arm64",
    uname: "aarch64",
    target: "aarch64-unknown-linux-gnu",
    libraries: "aarch64-linux-gnu",
    loader: "lib/ld-linux-aarch64.so.1",
    qemu: "qemu-system-aarch64",
    qemu_package: "qemu-system-arm",
    // CRIU cannot restore on `-cpu max`.
    board: ["-M", "virt", "-cpu", "cortex-a72"],
    console: "ttyAMA0",
    container: Arch::ARM64,
};

pub(crate) static MACHINES: [&Machine; 2] = [&AMD64, &ARM64];

/// Returns the values of `--arch`.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(MACHINES.map(|machine| machine.name))
}

impl Machine {
    /// The machine that `--arch NAME` means.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        let mut machines = MACHINES.into_iter();
        machines
            .find(|machine| machine.name == name)
            .with_context(|| format!("there is no machine {name}"))
    }

    /// The machine that this program runs on: `main` refuses others.
    pub(crate) fn host() -> &'static Self {
        &AMD64
    }

    /// Returns whether programs for it take a cross compiler.
    pub(crate) fn is_foreign(&self) -> bool {
        self != Self::host()
    }

    /// A name for something that exists for each machine: of that for amd64, it is `name` alone.
    pub(crate) fn qualify(&self, name: &str) -> String {
        match self == &AMD64 {
            true => name.to_owned(),
            false => format!("{name}-{}", self.name),
        }
    }
}
