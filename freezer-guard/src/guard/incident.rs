//! What somebody did to a guarded cgroup or tried to, in words and for JSON.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use freezer_guard_abi::{
    Act, BY_INTERRUPT, CgroupKey, Intruder, IntruderKey, KERNEL_SIGNAL, PROTECTED_FILES, RawEvent,
    Unguarded,
};
use nix::sys::signal::Signal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zlink::introspect::CustomType;

use super::now;
use crate::{
    cgroup,
    words::{escaped, timestamp},
};

/// Whether it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The attempt failed with EBUSY.
    Refused,
    /// It had an effect.
    Done,
}

/// One thing that one process did or tried, once or several times.
#[derive(Debug, Clone, Serialize, Deserialize, CustomType, JsonSchema)]
pub struct Incident {
    /// The pid of the process.
    pub pid: u32,
    /// The name of the process (`comm`), the first time.
    pub comm: String,
    /// The real uid of the process, the first time.
    pub uid: u32,
    /// The protection: `freeze`, `kill`, `migrate` or `ptrace`.
    pub protection: String,
    /// The action in words: `SIGKILL to pid 12`, or once it is done: `thawed /sys/fs/cgroup/foo`.
    pub what: String,
    /// The number of times.
    pub count: u64,
    /// The first time (RFC 3339, UTC).
    pub first: String,
    /// The last time (RFC 3339, UTC).
    pub last: String,
    /// Whether the guard was CHECKPOINTING then.
    pub checkpointing: bool,
    /// The first time on `CLOCK_BOOTTIME`, in nanoseconds.
    pub first_ns: u64,
}

impl Incident {
    pub(super) fn of_intruder(key: &IntruderKey, intruder: &Intruder, outcome: Outcome) -> Self {
        let what = What {
            act: key.act,
            detail: key.detail,
            cgroup: intruder.cgroup,
            victim: intruder.victim,
        };
        Self {
            pid: key.pid,
            comm: comm(&intruder.comm),
            uid: intruder.uid,
            protection: what.protection().to_owned(),
            what: what.text(outcome),
            count: intruder.count,
            first: wall_clock(intruder.first_ns),
            last: wall_clock(intruder.last_ns),
            checkpointing: key.checkpointing != 0,
            first_ns: intruder.first_ns,
        }
    }

    /// What a denial or a disturbance tells.
    pub fn of_event(event: &RawEvent, outcome: Outcome) -> Self {
        Self::of_intruder(&event.key(), &event.intruder(1), outcome)
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} (pid {}, uid {}) {}",
            escaped(&self.comm),
            self.pid,
            self.uid,
            escaped(&self.what)
        )?;
        if self.count > 1 {
            write!(formatter, ", {} times in all", self.count)?;
        }
        Ok(())
    }
}

struct What {
    act: u32,
    detail: u32,
    cgroup: CgroupKey,
    victim: u32,
}

impl What {
    fn act(&self) -> Option<Act> {
        Act::ALL.get(self.act as usize).copied()
    }

    fn protection(&self) -> &'static str {
        self.act()
            .map_or("unknown", |act| act.protection(self.detail).name())
    }

    fn text(&self, outcome: Outcome) -> String {
        let done = outcome == Outcome::Done;
        let Some(act) = self.act() else {
            return "an access that this version does not know".to_owned();
        };
        // It is looked for in the kernel.
        let cgroup = || path(self.cgroup).display().to_string();
        let task = match self.victim {
            0 => "a task".to_owned(),
            pid => format!("pid {pid}"),
        };
        let moved = if done { "moved" } else { "moving" };
        match act {
            Act::Write => {
                let file = PROTECTED_FILES.get(self.detail as usize);
                format!(
                    "write to {}/{}",
                    cgroup(),
                    file.map_or("?", |file| file.name)
                )
            }
            Act::Freeze => format!("froze {}", cgroup()),
            Act::Thaw => format!("thawed {}", cgroup()),
            Act::Enter => format!("{moved} {task} into {}", cgroup()),
            Act::Leave => format!("{moved} {task} out of {}", cgroup()),
            Act::Move => format!("{moved} {task} to {}", cgroup()),
            Act::Signal if self.detail & BY_INTERRUPT != 0 => format!(
                "sent {} to {task} (a timer of its own, a limit …)",
                signal(self.detail & !(KERNEL_SIGNAL | BY_INTERRUPT))
            ),
            Act::Signal if self.detail & KERNEL_SIGNAL != 0 => format!(
                "made the kernel send {} to {task} (out of memory …)",
                signal(self.detail & !KERNEL_SIGNAL)
            ),
            Act::Signal => {
                let sent = if done { "sent " } else { "" };
                format!("{sent}{} to {task}", signal(self.detail))
            }
            Act::Trace if done => format!("traced {task}"),
            Act::Trace => format!("tracing {task}, or access to its memory"),
            Act::Permit => format!("was permitted to trace {task} or to access its memory"),
            Act::WriteMemory => format!("wrote to the memory of {task}"),
            Act::ClearDirty => format!("cleared the dirty bits of {task}"),
            Act::Stray => format!("dumps {task}, which is in none of the guarded cgroups"),
        }
    }
}

fn signal(number: u32) -> String {
    match Signal::try_from(number.cast_signed()) {
        Ok(signal) => signal.to_string(),
        Err(_) => format!("signal {number}"),
    }
}

/// The path of a cgroup, or what there is to know of one that is gone.
pub fn path(key: CgroupKey) -> PathBuf {
    cgroup::by_key(key).unwrap_or_else(|| match key.kernfs_id {
        0 => "a cgroup".into(),
        id => format!("(removed cgroup {}:{id})", key.hierarchy_id).into(),
    })
}

/// What an event [`EventKind::Unguarded`](freezer_guard_abi::EventKind) tells, in
/// words.
pub fn unguarded(event: &RawEvent) -> String {
    let name = escaped(&comm(&event.comm)).into_owned();
    if event.detail == Unguarded::Untrusted as u32 {
        return format!(
            "{name} (pid {}) is not trusted, so its dumps have no guard: root has to own its file, \
             and nobody else may write to it; see `freezer-guard doctor`",
            event.pid
        );
    }
    let why = match event.detail {
        why if why == Unguarded::Busy as u32 => {
            "another guard holds this cgroup, an ancestor or a descendant"
        }
        _ => "there are too many guards or checkpointers at once",
    };
    format!(
        "{name} (pid {}) checkpoints {} without a guard of its own: {why}",
        event.pid,
        escaped(&path(event.cgroup).display().to_string())
    )
}

/// A NUL-padded name of a task.
fn comm(bytes: &[u8; 16]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A time of `CLOCK_BOOTTIME`, ns, as RFC 3339 in UTC.
pub fn wall_clock(boot_ns: u64) -> String {
    let ago = Duration::from_nanos(now().saturating_sub(boot_ns));
    let time = SystemTime::now().checked_sub(ago);
    timestamp(time.unwrap_or(SystemTime::UNIX_EPOCH))
}
