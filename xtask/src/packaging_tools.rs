//! rpmbuild, rpm, lintian, rpmlint, promtool and skopeo: Debian's, unpacked into a root of their own.
//!
//! Most of them are scripts that find their parts at fixed paths. So each runs in that root, in
//! namespaces of its own, and sees one directory of the machine. This works without root's privileges.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{cache, debian::Apt, machine::Machine};

/// Its rpm makes packages of format 4, which every distribution with rpm can read.
const RELEASE: &str = "trixie";

/// Debian's essential packages stand here too: packages do not say that they depend on these.
const PACKAGES: [&str; 17] = [
    "base-files",
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "libc-bin",
    "lintian",
    "mount",
    "promtool",
    "rpm",
    "rpmlint",
    "sed",
    "skopeo",
];

/// The directory of the machine, as the tools see it.
pub(crate) const WORK: &str = "/mnt";

/// Mounts devices, processes and the directory `$2` in the root `$1`, and runs the rest there.
const ENTER: &str = r#"
set -e
root=$1 work=$2
shift 2
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$work" "$root/mnt"
exec chroot "$root" "$@"
"#;

/// The directory that they are unpacked into. The number changes with the packages.
pub(crate) fn dir() -> PathBuf {
    cache::dir().join("tools").join("packaging-2")
}

pub(crate) fn fetch() -> Result<()> {
    let apt = Apt::open(RELEASE, Machine::host())?;
    cache::put(&dir(), |root| {
        for name in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(root.join("usr").join(name))?;
            symlink(format!("usr/{name}"), root.join(name))?;
        }
        apt.unpack_closure(&PACKAGES, root)?;
        for name in ["dev", "mnt", "proc", "tmp"] {
            fs::create_dir_all(root.join(name))?;
        }
        // The maintainer script of base-files makes this link, and lintian reads it.
        symlink("debian", root.join("etc/dpkg/origins/default"))?;
        Ok(())
    })
}

/// A command that runs in the tools' root as its root user, with `work` at [`WORK`].
pub(crate) fn command(work: &Path, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "--net"])
        .args(["sh", "-c", ENTER, "sh"])
        .args([&dir(), work])
        .args(["env", "--chdir", WORK, program])
        .env_clear()
        .env("HOME", "/tmp")
        .env("LC_ALL", "C.UTF-8")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}
