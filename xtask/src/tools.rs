//! QEMU and mke2fs: Debian's, unpacked and run with libraries of their own,
//! whatever this machine has.
//!
//! QEMU before 8.1 can run code that another CPU of the guest is just replacing
//! (`tb_gen_code` read it before it locked the page). Attaching BPF programs
//! does that all the time: such guests die of a stray `int3`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{cache, debian::Apt, machine::Machine};

const RELEASE: &str = "trixie";

/// The directory that mke2fs, and QEMU for this machine, are unpacked into.
pub(crate) fn dir(machine: &Machine) -> PathBuf {
    let tools = cache::dir().join("tools");
    tools.join(machine.qualify(RELEASE))
}

pub(crate) fn fetch(machine: &Machine) -> Result<()> {
    let apt = Apt::open(RELEASE, Machine::host())?;
    let packages = [machine.qemu_package, "e2fsprogs"];
    cache::put(&dir(machine), |root| apt.unpack_closure(&packages, root))
}

/// A program that is unpacked into this directory, with its libraries.
pub(crate) fn command(root: &Path, program: &str) -> Command {
    let usr = root.join("usr");
    let host = Machine::host();
    let mut command = Command::new(usr.join(host.loader));
    command
        .arg("--library-path")
        .arg(usr.join("lib").join(host.libraries))
        .arg(usr.join(program));
    command
}

/// QEMU for this machine. It finds its firmware.
pub(crate) fn qemu(machine: &Machine) -> Command {
    let dir = dir(machine);
    let mut command = command(&dir, &format!("bin/{}", machine.qemu));
    for firmware in ["share/qemu", "share/seabios"] {
        command.arg("-L").arg(dir.join("usr").join(firmware));
    }
    command
}

/// `mke2fs`, as it came with the QEMU for this machine. In a user namespace of its own an ordinary
/// user's files become root's.
pub(crate) fn mke2fs(machine: &Machine) -> Command {
    let mke2fs = command(&dir(machine), "sbin/mke2fs");
    if nix::unistd::geteuid().is_root() {
        return mke2fs;
    }
    let mut unshare = Command::new("unshare");
    unshare
        .arg("--map-root-user")
        .arg(mke2fs.get_program())
        .args(mke2fs.get_args());
    unshare
}
