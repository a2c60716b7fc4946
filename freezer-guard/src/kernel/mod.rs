//! BPF: what is loaded, attached and pinned. Knows nothing of freezers.

mod btf;
mod maps;
mod pins;
mod programs;
mod readers;

use std::{io, path::PathBuf};

use aya::programs::ProgramError;

pub use maps::Maps;
pub use pins::{Locked, PIN_DIR};
pub use programs::Hierarchies;
pub use readers::Reader;

/// What can go wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller may not use BPF.
    #[error("freezer-guard needs CAP_BPF and CAP_PERFMON: run it as root")]
    Permission,
    /// The kernel does not run BPF LSM programs.
    #[error(
        "the kernel does not run BPF LSM programs (active: {active}): \
         boot with the parameter lsm={active},bpf"
    )]
    LsmInactive {
        /// What `/sys/kernel/security/lsm` lists.
        active: String,
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
    /// Guards are held by another version of this program.
    #[error(
        "another version of freezer-guard holds guards ({}): \
         wait until they end, or use that version",
        PIN_DIR
    )]
    OtherVersion,
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

    /// Without the verifier's log, which can have thousands of lines.
    fn load(program: &str) -> impl FnOnce(ProgramError) -> Self {
        let operation = format!("load the BPF program {program}");
        |error| match error {
            ProgramError::LoadError { io_error, .. } => Self::Failed {
                operation,
                source: io_error.into(),
            },
            error => Self::Failed {
                operation,
                source: error.into(),
            },
        }
    }
}
