//! What has to hold before anything is loaded.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::OnceLock,
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use procfs::{ProcResult, process::Process};

use super::Error;

/// Returns whether function tracing is off. The kernel then calls no program on a function. An
/// attach or a detach meanwhile can break function tracing until the next boot: see
/// [`Error::TracingBroken`].
pub(crate) fn is_tracing_off() -> bool {
    matches!(require_tracing(), Err(Error::TracingOff))
}

/// Fails if the kernel calls no program on a function, or attaches none to a function.
pub(crate) fn require_tracing() -> Result<(), Error> {
    tracing(fs::read_to_string("/proc/sys/kernel/ftrace_enabled"))
}

/// `switch`: the sysctl. A kernel that has disabled function tracing for good answers ENODEV
/// (`ftrace_enable_sysctl` of `kernel/trace/ftrace.c`).
fn tracing(switch: io::Result<String>) -> Result<(), Error> {
    match switch {
        Ok(text) if text.trim() == "0" => Err(Error::TracingOff),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(Error::TracingBroken),
        _ => Ok(()),
    }
}

/// The directory of our pins.
pub const PIN_DIR: &str = "/sys/fs/bpf/freezer-guard";

const BPFFS: &str = "/sys/fs/bpf";
const LSM_LIST: &str = "/sys/kernel/security/lsm";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// Reads what does not change, and is asked for several times for each guard.
fn once<T>(known: &OnceLock<T>, read: impl FnOnce() -> ProcResult<T>) -> ProcResult<&T> {
    match known.get() {
        Some(value) => Ok(value),
        None => read().map(|value| known.get_or_init(|| value)),
    }
}

/// `CAP_SYS_ADMIN`, or `CAP_BPF` together with `CAP_PERFMON` (`capability.h`).
pub(crate) fn capabilities() -> Result<(), Error> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_PERFMON: u64 = 1 << 38;
    const CAP_BPF: u64 = 1 << 39;
    // This process gives none up.
    static EFFECTIVE: OnceLock<u64> = OnceLock::new();
    let effective = *once(&EFFECTIVE, || Ok(Process::myself()?.status()?.capeff))
        .map_err(Error::failed("read /proc/self/status"))?;
    let enough = effective & CAP_SYS_ADMIN != 0
        || effective & (CAP_BPF | CAP_PERFMON) == CAP_BPF | CAP_PERFMON;
    if enough {
        Ok(())
    } else {
        Err(Error::Permission)
    }
}

fn bpffs_failed(error: io::Error) -> Error {
    Error::Missing {
        path: BPFFS.into(),
        needed_for: "mount it: mount -t bpf bpf /sys/fs/bpf (in a container, mount the host's)",
        error,
    }
}

/// Whether the file system for pins is mounted.
pub(crate) fn bpffs_is_mounted() -> Result<bool, Error> {
    let found = statfs(BPFFS).map_err(|errno| bpffs_failed(errno.into()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts it if nobody has.
pub(super) fn mount_bpffs() -> Result<(), Error> {
    if bpffs_is_mounted()? {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=700"),
    )
    .map_err(|errno| bpffs_failed(errno.into()))
}

/// Each mount of a bpffs that is not a bind mount has pins of its own. Two sets of programs would
/// guard one cgroup without knowing each other, and each would refuse the other's holder.
///
/// # Errors
/// When the bpffs here is not that of PID 1.
pub(super) fn is_bpffs_of_host() -> Result<(), Error> {
    const OF_HOST: &str = "/proc/1/root/sys/fs/bpf";
    let device = |path: &str| fs::metadata(path).map(|found| found.dev());
    // A checkpointer in a sandbox may not look there. The daemon has to: see `DaemonLock`.
    match (device(OF_HOST), device(BPFFS)) {
        (Ok(of_host), Ok(here)) if of_host != here => Err(Error::OtherBpffs),
        _ => Ok(()),
    }
}

/// The active security modules, as the boot parameter `lsm=` has them.
pub(crate) fn active_modules() -> Result<String, Error> {
    let list = fs::read_to_string(LSM_LIST).map_err(no_modules)?;
    Ok(list.trim().to_owned())
}

/// The error for a list of security modules that cannot be read.
pub(super) fn no_modules(error: io::Error) -> Error {
    Error::Missing {
        path: LSM_LIST.into(),
        needed_for: "mount it: mount -t securityfs securityfs /sys/kernel/security",
        error,
    }
}

/// Without `bpf` among the active security modules, loading and attaching
/// succeed and enforce nothing.
pub(crate) fn lsm_inactive() -> Result<Option<Error>, Error> {
    Ok(lsm_inactive_in(&active_modules()?))
}

/// The same for a list of active security modules.
pub(super) fn lsm_inactive_in(active: &str) -> Option<Error> {
    let has_bpf = active.split(',').any(|module| module == "bpf");
    (!has_bpf).then(|| Error::LsmInactive {
        active: active.to_owned(),
    })
}

/// In this mode there is no `bpf_probe_read_kernel` (`bpf_base_func_proto`).
pub(crate) fn lockdown() -> Result<(), Error> {
    match is_confidential(&lockdown_modes()) {
        true => Err(Error::LockedDown),
        false => Ok(()),
    }
}

/// Returns whether this mode is the one in force among these.
pub(super) fn is_confidential(modes: &str) -> bool {
    modes.contains("[confidentiality]")
}

/// All modes, with brackets around the one in force. Empty where the kernel
/// cannot be locked down.
pub(crate) fn lockdown_modes() -> String {
    let modes = fs::read_to_string(LOCKDOWN).unwrap_or_default();
    modes.trim().to_owned()
}

/// Returns how somebody other than root could change the pins, if he can: where bpffs is
/// mounted for everybody, a user may have made this directory before us.
pub(super) fn foreign_hand(dir: &File) -> io::Result<Option<String>> {
    const BY_OTHERS: u32 = libc::S_IWGRP | libc::S_IWOTH;
    let found = dir.metadata()?;
    if found.uid() != 0 {
        let uid = found.uid();
        return Ok(Some(format!("it belongs to uid {uid}: remove it")));
    }
    if found.mode() & BY_OTHERS != 0 {
        return Ok(Some("others may write to it: chmod go-w".to_owned()));
    }
    let above = Path::new(PIN_DIR).parent().unwrap_or(Path::new("/"));
    let mode = fs::metadata(above)?.mode();
    // In a sticky directory nobody else can rename or remove it.
    let is_replaceable = mode & BY_OTHERS != 0 && mode & libc::S_ISVTX == 0;
    Ok(is_replaceable.then(|| {
        let above = above.display();
        format!("others may write to {above}, and so replace it: chmod go-w {above}")
    }))
}

/// How the kernel preempts tasks inside itself: `none`, `voluntary`, `lazy` or `full`, as debugfs has it.
/// `None`: that is set at boot, and debugfs is not mounted.
pub(crate) fn preemption() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let modes = read("/sys/kernel/debug/sched/preempt");
    let in_force = modes
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'));
    let built = read("/proc/sys/kernel/version");
    match in_force {
        Some((mode, _)) => Some(mode.to_owned()),
        None if built.contains("PREEMPT_DYNAMIC") => None,
        None if built.contains("PREEMPT") => Some("full".to_owned()),
        None => Some("none or voluntary".to_owned()),
    }
}

/// Whether the kernel may preempt a task inside a program.
pub(super) fn may_preempt() -> bool {
    let mode = preemption();
    !mode.is_some_and(|mode| mode.starts_with("none") || mode == "voluntary")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Error, tracing};

    #[test]
    fn function_tracing_is_on_off_or_broken() {
        let on = tracing(Ok("1\n".to_owned()));
        assert!(on.is_ok(), "{on:?}");
        let off = tracing(Ok("0\n".to_owned()));
        assert!(matches!(off, Err(Error::TracingOff)), "{off:?}");
        let broken = tracing(Err(io::Error::from_raw_os_error(libc::ENODEV)));
        assert!(matches!(broken, Err(Error::TracingBroken)), "{broken:?}");
        // An attempt shows more.
        let unknown = tracing(Err(io::ErrorKind::NotFound.into()));
        assert!(unknown.is_ok(), "{unknown:?}");
    }
}
