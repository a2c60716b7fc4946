//! Commands and writes in processes of a special kind.

use std::{fs, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        statfs::{CGROUP2_SUPER_MAGIC, statfs},
        wait::waitpid,
    },
    unistd::{ForkResult, setsid},
};

use super::write::{self, Method};
use crate::sys;

fn exec(command: &[String]) -> Result<()> {
    let [program, arguments @ ..] = command else {
        bail!("no command")
    };
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("run {program}"))
}

/// Runs the command in a grandchild that has lost us for a parent.
pub(super) fn daemon(command: &[String]) -> Result<()> {
    if let ForkResult::Parent { child } = sys::fork()? {
        waitpid(child, None)?;
        return Ok(());
    }
    setsid()?;
    match sys::fork()? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => exec(command),
    }
}

fn private_mounts(more: CloneFlags) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | more).context("unshare")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make / private")
}

/// Writes from a namespace in which `cgroup` is the root.
pub(super) fn cgroupns(cgroup: &Path, file: &Path, value: &str) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("write {}", procs.display()))?;
    let v2 = statfs(cgroup)?.filesystem_type() == CGROUP2_SUPER_MAGIC;
    private_mounts(CloneFlags::CLONE_NEWCGROUP)?;
    let top = std::env::temp_dir().join(format!("cgroupns.{}", std::process::id()));
    fs::create_dir_all(&top)?;
    let (kind, options) = if v2 {
        ("cgroup2", None)
    } else {
        ("cgroup", Some("freezer"))
    };
    mount(Some(kind), &top, Some(kind), MsFlags::empty(), options).context("mount the cgroups")?;
    write::write(Method::Write, &top.join(file), value)
}

/// Runs the command in a mount namespace without this mount.
pub(super) fn unmounted(path: &Path, command: &[String]) -> Result<()> {
    private_mounts(CloneFlags::empty())?;
    umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", path.display()))?;
    exec(command)
}

/// Runs the command without what it takes to load BPF programs.
pub(super) fn powerless(command: &[String]) -> Result<()> {
    const CAP_SYS_ADMIN: u64 = 21;
    const CAP_PERFMON: u64 = 38;
    const CAP_BPF: u64 = 39;
    for capability in [CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF] {
        sys::drop_capability(capability).context("drop a capability")?;
    }
    exec(command)
}
