//! BPF: what is loaded, attached and pinned. Knows nothing of freezers.

mod btf;
mod calls;
mod code;
mod daemon;
pub(crate) mod decision;
mod loading;
mod lock;
mod log;
mod maps;
mod memory;
mod noop;
mod object;
mod pins;
pub(crate) mod prerequisites;
mod programs;
mod readers;
mod reading;
mod recorded;
mod report;
mod sizes;
mod table;
mod types;
mod unloading;

use std::{io, path::PathBuf};

use nix::sys::signal::Signal;

use crate::{Kind, sys, words::escaped};

pub use calls::CallResult;
pub use daemon::{DaemonLock, daemon_runs};
pub use lock::Owner;
use lock::RUN_DIR;
pub use log::{KernelLog, Line};
pub use maps::{Control, Maps};
pub use memory::Memory;
pub use noop::Noop;
pub use pins::Locked;
pub use prerequisites::PIN_DIR;
pub use programs::{Hierarchies, Levels};
pub use readers::Reader;
pub use recorded::RecordedTypes;
pub use report::ProgramReport;
pub use table::Map;

/// What can go wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller may not use BPF.
    #[error("freezer-guard needs CAP_BPF and CAP_PERFMON: run it as root")]
    Permission,
    /// Another daemon is there.
    #[error("another daemon is already running: see `systemctl status freezer-guard`")]
    DaemonRuns,
    /// The kernel does not run BPF LSM programs.
    #[error(
        "the active security modules ({active}) do not include bpf: \
         boot with the parameter lsm={active},bpf"
    )]
    LsmInactive {
        /// What `/sys/kernel/security/lsm` lists.
        active: String,
    },
    /// The kernel calls no program.
    #[error(
        "function tracing is off, so the kernel calls no BPF program that is attached to a function: \
         `sysctl kernel.ftrace_enabled=1`"
    )]
    TracingOff,
    /// The kernel has disabled function tracing, after an error that it found in its own code. An attach
    /// then fails with ENODEV until the next boot. Linux 6.12 does so if function tracing is switched off
    /// and on while programs are attached or detached.
    #[error(
        "the kernel has disabled function tracing after an error of its own (see `dmesg`), so it attaches no BPF program \
         to a function: restart the host"
    )]
    TracingBroken,
    /// The kernel attaches no program to any function.
    #[error(
        "the kernel attaches no BPF program to a function, as it lacks CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS: \
         on arm64 use Linux 6.4 or later, without kernel CFI"
    )]
    NoTrampolines,
    /// Programs may not read the kernel's memory.
    #[error(
        "the kernel is locked down (confidentiality), which forbids BPF to read kernel memory: \
         boot without lockdown=confidentiality"
    )]
    LockedDown,
    /// The kernel has no function that a program is to be attached to.
    #[error("the kernel has no function {function} for the BPF program {program}")]
    NoHook {
        /// The program.
        program: &'static str,
        /// The function.
        function: String,
    },
    /// A program that is of use is not attached.
    #[error("the BPF program {0} is not attached")]
    NotAttached(&'static str),
    /// A program is attached, and some of its copies are not.
    #[error(
        "the BPF program {0} is attached, but not all of its copies, so on a preemptible kernel more accesses get \
         through: look for other programs on the same function (`bpftool link`)"
    )]
    CopiesNotAttached(&'static str, #[source] Box<Error>),
    /// The kernel does not call a program that is attached.
    #[error(
        "the kernel does not call the BPF program {program} ({hook}), though it is attached: \
         please report it, with the output of `freezer-guard doctor --verbose`"
    )]
    NeverCalled {
        /// The program.
        program: &'static str,
        /// Its type and its hook.
        hook: String,
    },
    /// The kernel does not take a program.
    #[error("{}", describe_load(program, source))]
    Load {
        /// The program.
        program: &'static str,
        /// What bpf(2) says.
        source: io::Error,
        /// The log of the verifier: may have thousands of lines.
        log: String,
    },
    /// Guards of another level are in force, or the daemon has loaded another one.
    #[error(
        "the loaded BPF programs have the level {held}: wait until all guards end (`freezer-guard status`), and \
         stop the service if it runs (`systemctl stop freezer-guard.socket freezer-guard.service`)"
    )]
    OtherLevel {
        /// Their level.
        held: &'static str,
    },
    /// A file that the kernel should have is missing.
    #[error("{}: {error}; {needed_for}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it is needed for and how to get it.
        needed_for: &'static str,
        /// Why it could not be used.
        error: io::Error,
    },
    /// A kernel that describes no types.
    #[error("the kernel has no BTF: use a kernel built with CONFIG_DEBUG_INFO_BTF")]
    NoTypes,
    /// BTF without something we read.
    #[error("this kernel's BTF has no {0}.{1}: freezer-guard does not know this kernel yet")]
    Field(&'static str, &'static str),
    /// BTF that cannot be parsed.
    #[error("parse /sys/kernel/btf/vmlinux")]
    Btf(#[from] btf_rs::Error),
    /// Something else failed.
    #[error("{operation}")]
    Failed {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Too many guards, or threads of holders.
    #[error(
        "the map {0} is full: there are too many guards, or threads of holders, at once; see `freezer-guard status`"
    )]
    Full(&'static str),
    /// Guards are held by another version of this program.
    #[error(
        "another version of freezer-guard holds guards ({}): \
         wait until they end, or end them with `freezer-guard end --all --force`",
        PIN_DIR
    )]
    OtherVersion,
    /// The pins are not those of the host.
    #[error(
        "{PIN_DIR} is in another bpffs than the one of PID 1, so this process cannot see the host's guards: \
         enter the mount namespace of PID 1 (`nsenter --mount --target 1`), and mount bpffs there if it is missing; \
         in a container, mount the host's /sys/fs/bpf"
    )]
    OtherBpffs,
    /// The lock of the daemon is not that of the host.
    #[error(
        "{RUN_DIR} is not that of PID 1, so programs of the host cannot find this service: in a container, mount \
         the host's {RUN_DIR}"
    )]
    OtherRunDir,
    /// It is not known whether the lock of the daemon is that of the host.
    #[error(
        "cannot find out whether {RUN_DIR} is that of PID 1: the service needs CAP_SYS_PTRACE for that, and no security \
         module may forbid it"
    )]
    UnknownRunDir(#[source] io::Error),
    /// Another process does not unlock the pins.
    #[error("{}", describe_lock(.0.as_ref()))]
    Locked(Option<Owner>),
    /// A signal has come while this process waited for another.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
}

/// Whether the caller may use BPF at all.
///
/// # Errors
/// When not.
pub fn may_use_bpf() -> Result<(), Error> {
    prerequisites::capabilities()
}

/// Waits until every program that runs now has ended.
pub(crate) fn wait_for_programs() -> Result<(), Error> {
    sys::wait_for_programs().map_err(Error::failed("wait until all BPF programs have ended"))
}

/// Every field that the programs read and the running kernel has not.
pub(crate) fn missing_fields() -> Result<Vec<(&'static str, &'static str)>, Error> {
    Ok(btf::missing_fields(&btf::of_kernel()?))
}

/// What the running kernel's BTF says of all that we look at.
pub(crate) fn recorded_types() -> Result<RecordedTypes, Error> {
    Ok(RecordedTypes::of(&btf::of_kernel()?))
}

impl Error {
    fn failed<E>(operation: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let operation = operation.into();
        |source| Self::Failed {
            operation,
            source: source.into(),
        }
    }

    /// Returns whether this quirk explains the error.
    fn is(&self, quirk: fn(&io::Error) -> bool) -> bool {
        match self {
            Self::Failed { source, .. } => source.downcast_ref().is_some_and(quirk),
            _ => false,
        }
    }

    /// Returns whether its text may name a process of this host.
    pub fn names_a_process(&self) -> bool {
        matches!(self, Self::Locked(_))
    }

    /// Returns the kind of this failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Permission => Kind::Permission,
            Self::UnknownRunDir(error) => Kind::of_io(error),
            Self::Load { source, .. } if source.raw_os_error() == Some(libc::EPERM) => {
                Kind::Permission
            }
            Self::Missing { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                Kind::Permission
            }
            Self::DaemonRuns
            | Self::OtherVersion
            | Self::OtherLevel { .. }
            | Self::Full(_)
            | Self::Locked(_)
            | Self::Interrupted(_) => Kind::Busy,
            Self::LsmInactive { .. }
            | Self::TracingOff
            | Self::TracingBroken
            | Self::NoTrampolines
            | Self::LockedDown
            | Self::OtherBpffs
            | Self::OtherRunDir
            | Self::NoHook { .. }
            | Self::NotAttached(_)
            | Self::CopiesNotAttached(..)
            | Self::NeverCalled { .. }
            | Self::Load { .. }
            | Self::Missing { .. }
            | Self::NoTypes
            | Self::Field(..)
            | Self::Btf(_)
            | Self::Failed { .. } => Kind::Unsupported,
        }
    }

    /// What the verifier says of the program it refuses.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            Self::Load { log, .. } if !log.is_empty() => Some(log),
            _ => None,
        }
    }
}

fn describe_lock(owner: Option<&Owner>) -> String {
    let Some(Owner {
        pid,
        comm,
        is_stopped,
    }) = owner
    else {
        return format!("another process has locked {PIN_DIR}: try again");
    };
    let comm = escaped(comm);
    match is_stopped {
        true => format!(
            "pid {pid} ({comm}) has locked {PIN_DIR} and is stopped: continue it (`kill -CONT {pid}`), or end it"
        ),
        false => format!(
            "pid {pid} ({comm}) has locked {PIN_DIR} for a long time: wait for it, or end it"
        ),
    }
}

fn describe_load(program: &str, error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "the kernel forbids bpf(2) to this process, although it has the capabilities: look for a \
             seccomp filter (of a container), another security module, or a limit on locked \
             memory (ulimit -l)"
        }
        Some(libc::ENOMEM) => "the kernel has not enough memory",
        // E2BIG: the verifier has given up. The others: it refuses.
        Some(libc::EINVAL | libc::EACCES | libc::E2BIG) => {
            "the verifier of this kernel rejects it: see its log with `freezer-guard run --verbose`, and please report it"
        }
        _ => "see --verbose",
    };
    format!("the kernel does not load the BPF program {program}: {why}")
}
