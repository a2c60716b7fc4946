//! Why a guard cannot be had.

use std::{fmt, path::PathBuf, time::Duration};

use freezer_guard_abi::{Level, Protection, control::Operation};

use crate::{
    Kind,
    cgroup::{self, FreezerState, Task, Traced},
    kernel,
    words::escaped,
};

/// Why a guard could not be begun or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The host does not reach the required level.
    #[error(
        "this host does not reach the level {required} ({}): {}; run `freezer-guard doctor` to find out \
         why, or ask for less with --require or --allow",
        some(weak, Shortfall::to_string),
        some(reasons, |reason| chain(reason))
    )]
    TooWeak {
        /// The level.
        required: &'static str,
        /// What does not reach it.
        weak: Vec<Shortfall>,
        /// Why.
        reasons: Vec<kernel::Error>,
    },
    /// Another guard holds the cgroup, one above or one below it.
    #[error(
        "{} is busy: a guard holds {}{}; see `freezer-guard status`",
        path.display(), of.display(), holders(pids)
    )]
    Guarded {
        /// The cgroup that was asked for.
        path: PathBuf,
        /// The cgroup that is guarded.
        of: PathBuf,
        /// The processes of its holder.
        pids: Vec<u32>,
    },
    /// Two of the cgroups asked for overlap.
    #[error("{} is the same as {} or lies above it: name one of them", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    /// The caller holds another guard.
    #[error(
        "this process already belongs to the holder of another guard: guard several cgroups with one `run --cgroup A --cgroup B`"
    )]
    Nested,
    /// The process that was to hold it is gone.
    #[error("no process can hold the guard: {0}")]
    NoHolder(String),
    /// The cgroup is not frozen and we were not asked to freeze it.
    #[error("{} is {state}, not FROZEN: freeze it first, or add --freeze", path.display())]
    NotFrozen {
        /// The cgroup.
        path: PathBuf,
        /// Its state.
        state: FreezerState,
    },
    /// It was to be frozen, and some tasks cannot be.
    #[error("{} did not freeze within {}: {}; freezer-guard has restored its earlier state. End these tasks, or raise --freeze-timeout", path.display(), humantime::format_duration(*after), tasks.join(", "))]
    DidNotFreeze {
        /// The cgroup.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
        /// Those tasks.
        tasks: Vec<String>,
    },
    /// An ancestor is frozen: CRIU would hang.
    #[error("{} is frozen, so {} stays frozen when the checkpointer thaws it: thaw the first one before", ancestor.display(), path.display())]
    FrozenAncestor {
        /// The cgroup.
        path: PathBuf,
        /// The one above it, or one of the other hierarchy that holds its tasks.
        ancestor: PathBuf,
    },
    /// A descendant has a frozen freezer of its own: CRIU would hang.
    #[error("{} is frozen itself, so it stays frozen when the checkpointer thaws {}: thaw it first", descendant.display(), path.display())]
    FrozenDescendant {
        /// The cgroup.
        path: PathBuf,
        /// The one below it.
        descendant: PathBuf,
    },
    /// The guard would freeze a process that it depends on.
    #[error("{} contains {process}, which must not be frozen: move it to another cgroup first", path.display())]
    Contains {
        /// The cgroup that was asked for.
        path: PathBuf,
        /// The process, with its pid.
        process: String,
    },
    /// Tasks of the checkpoint are elsewhere.
    #[error(
        "not all tasks of the checkpoint are in {}: {}; \
         move them there, or guard a cgroup that holds them all with --cgroup",
        path.display(), some(tasks, describe_task)
    )]
    Stray {
        /// The guarded cgroup.
        path: PathBuf,
        /// The tasks that are not in it.
        tasks: Vec<Task>,
    },
    /// Somebody traces tasks of the target: the checkpointer could not.
    #[error("{}; CRIU cannot checkpoint a traced task: end or detach the tracer first", some(.0, describe_traced))]
    Traced(Vec<Traced>),
    /// A task was killed while the guard was being set up, or it was disturbed
    /// again and again.
    #[error("{} was disturbed while the guard was being set up: {}; try again", path.display(), incidents.join("; "))]
    Disturbed {
        /// The guarded cgroup.
        path: PathBuf,
        /// What was done.
        incidents: Vec<String>,
    },
    /// The programs are attached, and the kernel calls none.
    #[error(
        "the kernel does not call the attached BPF programs, so nothing guards {}: \
         is function tracing off? `sysctl kernel.ftrace_enabled=1`", .0.display()
    )]
    NotCalled(PathBuf),
    /// Nothing shows whether the kernel calls the programs.
    #[error("cannot prove that the kernel calls the BPF programs")]
    NoProof(#[source] std::io::Error),
    /// Somebody has ended the guard before the checkpointer was started.
    #[error("another process ended the guard of {} before COMMAND started: see `freezer-guard status --last`, and try again", .0.display())]
    WasGone(PathBuf),
    /// The BPF side answers what no version of this program says.
    #[error("the BPF program control answers {answer} to {operation:?}: please report it")]
    Answer {
        /// The operation.
        operation: Operation,
        /// The number.
        answer: u32,
    },
    /// In another pid namespace the kernel's process ids mean somebody else.
    #[error(
        "freezer-guard must run in the initial pid namespace: run it on the host, or in a container with the \
         host's pid namespace (`--pid=host`, `hostPID: true`)"
    )]
    PidNamespace,
    /// The service was told to stop while it froze the target.
    #[error("the service is stopping and has thawed the cgroups that it had frozen: try again")]
    Stopping,
    /// Guards need the programs that were to be unloaded.
    #[error(
        "{0} guards are in force: wait until they end, see `freezer-guard status`; \
         or end them with `freezer-guard end --all --force`"
    )]
    InForce(usize),
    /// The service needs the programs that were to be unloaded.
    #[error(
        "the service needs the BPF programs: stop it first, with \
         `systemctl stop freezer-guard.socket freezer-guard.service`"
    )]
    DaemonRuns,
    /// Nobody guards it.
    #[error("{} is not guarded", .0.display())]
    NotGuarded(PathBuf),
}

impl Error {
    /// Returns the kind of this failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cgroup(error) => error.kind(),
            Self::Kernel(error) => error.kind(),
            Self::Contains { .. } | Self::Overlap(..) | Self::NoHolder(_) => Kind::Request,
            Self::Guarded { .. }
            | Self::Nested
            | Self::InForce(_)
            | Self::DaemonRuns
            | Self::Stopping => Kind::Busy,
            Self::NotFrozen { .. }
            | Self::DidNotFreeze { .. }
            | Self::FrozenAncestor { .. }
            | Self::FrozenDescendant { .. } => Kind::NotFrozen,
            Self::Stray { .. } | Self::Traced(_) => Kind::Stray,
            Self::Disturbed { .. } => Kind::Disturbed,
            Self::NotGuarded(_) => Kind::NotGuarded,
            Self::WasGone(_) => Kind::Gone,
            Self::PidNamespace | Self::TooWeak { .. } | Self::NotCalled(_) => Kind::Unsupported,
            Self::Answer { .. } | Self::NoProof(_) => Kind::Internal,
        }
    }

    /// What the kernel has said about BPF.
    pub fn kernel_errors(&self) -> Vec<&kernel::Error> {
        match self {
            Self::Kernel(error) => vec![error],
            Self::TooWeak { reasons, .. } => reasons.iter().collect(),
            _ => Vec::new(),
        }
    }
}

/// An error with its causes, on one line, without control characters.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some say themselves what caused them.
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    escaped(&text).into_owned()
}

/// The first few of them.
fn some<T>(list: &[T], describe: fn(&T) -> String) -> String {
    const NAMED: usize = 5;
    let mut named: Vec<_> = list.iter().take(NAMED).map(describe).collect();
    if list.len() > NAMED {
        named.push(format!("{} more", list.len() - NAMED));
    }
    named.join(", ")
}

fn describe_task(task: &Task) -> String {
    let thread = match task.tid == task.pid {
        true => String::new(),
        false => format!("thread {} of ", task.tid),
    };
    format!(
        "{thread}pid {} ({}) is in {}",
        task.pid,
        escaped(&task.comm),
        task.cgroup.display()
    )
}

fn describe_traced(traced: &Traced) -> String {
    format!(
        "pid {} ({}) is traced by pid {} ({})",
        traced.task.pid,
        escaped(&traced.task.comm),
        traced.tracer,
        escaped(&traced.tracer_comm)
    )
}

fn holders(pids: &[u32]) -> String {
    match pids {
        [] => String::new(),
        [pid, ..] => format!(" for pid {pid}"),
    }
}

/// A protection and how far it goes; in words, `ptrace: detect`.
#[derive(Debug, Clone, Copy)]
pub struct Shortfall {
    /// Which.
    pub protection: Protection,
    /// Its level; `None`: the kernel side does not even notice a disturbance.
    pub level: Option<Level>,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = Level::name_of(self.level);
        write!(formatter, "{}: {level}", self.protection.name())
    }
}
