//! Commands and writes in processes of a special kind.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        statfs::{CGROUP2_SUPER_MAGIC, statfs},
        wait::waitpid,
    },
    unistd::{ForkResult, setsid},
};

use super::{
    btf,
    write::{self, Method},
};
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

/// Runs the command in a mount namespace where the directory is empty.
pub(super) fn hidden(path: &Path, command: &[String]) -> Result<()> {
    private_mounts(CloneFlags::empty())?;
    let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
    mount(kind, path, kind, flags, None::<&str>)
        .with_context(|| format!("mount over {}", path.display()))?;
    exec(command)
}

/// Runs the command in a mount namespace where the kernel's BTF is another one, as `btf::change`
/// says.
pub(super) fn renamed(names: &[String], command: &[String]) -> Result<()> {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    let bytes = btf::change(fs::read(BTF)?, names)?;
    private_mounts(CloneFlags::empty())?;
    let file = std::env::temp_dir().join(format!("btf.{}", std::process::id()));
    fs::write(&file, bytes)?;
    mount(
        Some(&file),
        BTF,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context("bind mount")?;
    exec(command)
}

/// Keeps the lock of a file until there is a line to read.
pub(super) fn lock(path: &Path) -> Result<()> {
    let locked = Flock::lock(File::open(path)?, FlockArg::LockExclusive);
    let _lock = locked.map_err(|(_, errno)| errno)?;
    super::ready()
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
