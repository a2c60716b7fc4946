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

use crate::{cache, debian::Apt};

const RELEASE: &str = "trixie";
const PACKAGES: [&str; 2] = ["qemu-system-x86", "e2fsprogs"];

/// The directory that QEMU and mke2fs are unpacked into.
pub(crate) fn dir() -> PathBuf {
    cache::dir().join("tools").join(RELEASE)
}

pub(crate) fn fetch() -> Result<()> {
    let apt = Apt::open(RELEASE)?;
    cache::put(&dir(), |root| apt.unpack_closure(&PACKAGES, root))
}

/// A program that is unpacked into this directory, with its libraries.
pub(crate) fn command(root: &Path, program: &str) -> Command {
    let usr = root.join("usr");
    let mut command = Command::new(usr.join("lib64/ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(usr.join("lib/x86_64-linux-gnu"))
        .arg(usr.join(program));
    command
}

/// `qemu-system-x86_64`, which finds its firmware.
pub(crate) fn qemu() -> Command {
    let mut command = command(&dir(), "bin/qemu-system-x86_64");
    for firmware in ["share/qemu", "share/seabios"] {
        command.arg("-L").arg(dir().join("usr").join(firmware));
    }
    command
}

/// `mke2fs`. In a user namespace of its own an ordinary user's files become root's.
pub(crate) fn mke2fs() -> Command {
    let mke2fs = command(&dir(), "sbin/mke2fs");
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
