//! What the kernel has for us.

use std::fs;

use super::Check;
use crate::{
    guard::{self, chain},
    kernel::{self, Locked, prerequisites},
};

/// The kernels that every release is tested on, oldest first, for each architecture. `docs/kernels.md`
/// tells what works on them; xtask's own table says where they come from.
pub const TESTED: [(&str, &[&str]); 2] = [
    ("x86_64", &["6.1", "6.12", "6.18", "7.3"]),
    ("aarch64", &["6.12", "7.3"]),
];

/// `uname -r`
pub fn release() -> String {
    proc_file("/proc/sys/kernel/osrelease")
}

pub(super) fn proc_file(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Says whether the tests run on this kernel. No verdict follows from a release: the checks below show
/// what works.
pub(super) fn version() -> Check {
    const NAME: &str = "kernel";
    let release = release();
    let mut tested = TESTED.into_iter();
    let here = tested.find(|(architecture, _)| *architecture == std::env::consts::ARCH);
    let tested = here.map_or(&[][..], |(_, kernels)| kernels);
    let is_tested = tested.iter().any(|name| {
        release
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['.', '-']))
    });
    let status = match is_tested {
        true => "tested with each release of freezer-guard".to_owned(),
        false => format!(
            "not one of the tested kernels ({}): the checks below show what works",
            tested.join(", ")
        ),
    };
    Check::good(NAME, format!("{release}: {status}"))
}

pub(super) fn btf() -> Check {
    const NAME: &str = "BTF";
    match kernel::missing_fields() {
        Ok(missing) if missing.is_empty() => {
            Check::good(NAME, "has every field that the programs read")
        }
        Ok(missing) => {
            let missing: Vec<_> = missing
                .into_iter()
                .map(|(container, member)| format!("{container}.{member}"))
                .collect();
            Check::unusable(
                NAME,
                format!("lacks {}", missing.join(", ")),
                "freezer-guard does not support this kernel yet: please report it",
            )
        }
        Err(error) => Check::unusable(
            NAME,
            chain(&error),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

pub(super) fn security_modules() -> Check {
    const NAME: &str = "security modules";
    match (
        prerequisites::active_modules(),
        prerequisites::lsm_inactive(),
    ) {
        (Ok(active), Ok(None)) => Check::good(NAME, format!("{active}: bpf is among them")),
        (Ok(active), Ok(Some(_))) => Check::limited(
            NAME,
            format!(
                "{active}: bpf is not among them, so a disturbance can get through (and is then detected)"
            ),
            format!("boot with the parameter lsm={active},bpf"),
        ),
        (Err(error), _) | (_, Err(error)) => Check::unusable(
            NAME,
            chain(&error),
            "mount -t securityfs securityfs /sys/kernel/security",
        ),
    }
}

pub(super) fn lockdown() -> Check {
    const NAME: &str = "lockdown";
    let modes = prerequisites::lockdown_modes();
    match prerequisites::lockdown() {
        Ok(()) if modes.is_empty() => Check::good(NAME, "this kernel has no lockdown"),
        Ok(()) => Check::good(NAME, format!("{modes}: BPF may read kernel memory")),
        Err(error) => Check::unusable(NAME, modes, error.to_string()),
    }
}

/// It matters where programs can be left out: below `enforce`, and for the
/// tripwires of ptrace.
pub(super) fn preemption() -> Check {
    const NAME: &str = "preemption";
    let finding = prerequisites::preemption()
        .unwrap_or_else(|| "set at boot (mount debugfs to see how)".to_owned());
    let built = proc_file("/proc/sys/kernel/version");
    if built.contains("PREEMPT_RT") {
        return Check::limited(
            NAME,
            "full, real-time: the kernel may skip a program even under a spinlock, so some disturbances may go undetected",
            "use a kernel without CONFIG_PREEMPT_RT",
        );
    }
    let enforces = matches!(prerequisites::lsm_inactive(), Ok(None));
    let matters = match enforces {
        true => "it does not matter here, since bpf is a security module",
        false => {
            "on a full or lazy preemptible kernel a crowd of processes can get an access past the refusal, and it is detected"
        }
    };
    Check::good(NAME, format!("{finding}; {matters}"))
}

pub(super) fn capabilities() -> Check {
    const NAME: &str = "capabilities";
    match prerequisites::capabilities() {
        Ok(()) => Check::good(NAME, "CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON"),
        Err(error) => Check::unusable(NAME, chain(&error), "run it as root"),
    }
}

pub(super) fn bpffs() -> Check {
    const NAME: &str = "bpffs";
    match prerequisites::bpffs_is_mounted() {
        Ok(true) => Check::good(NAME, "mounted on /sys/fs/bpf"),
        Ok(false) => Check::good(NAME, "not mounted: freezer-guard mounts it"),
        Err(error) => Check::unusable(
            NAME,
            chain(&error),
            "use a kernel built with CONFIG_BPF_SYSCALL, and mount sysfs",
        ),
    }
}

/// Guards in force, and what a crash has left.
pub(super) fn pins() -> Check {
    const NAME: &str = "guards";
    let loaded = || Ok::<_, kernel::Error>(Locked::wait()?.level().is_some());
    let found = loaded().map_err(guard::Error::from);
    match found.and_then(|loaded| Ok((loaded, guard::list()?))) {
        Ok((false, _)) => Check::good(NAME, "none; no BPF program is loaded"),
        Ok((true, guards)) if guards.is_empty() => Check::good(
            NAME,
            "none; the BPF programs of earlier guards stay loaded (`freezer-guard unload` removes them)",
        ),
        Ok((true, guards)) => Check::good(NAME, format!("{} in force", guards.len())),
        Err(error) => Check::limited(NAME, chain(&error), "see `freezer-guard status`").private(),
    }
}
