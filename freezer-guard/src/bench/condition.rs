//! What there is of us while something is measured, and how it comes about.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use freezer_guard_ebpf::Level;

use super::Error;
use crate::{
    cgroup::{Cgroup, Version},
    guard::{Guard, Wanted, automatic},
    kernel::{Empty, Hierarchies, Locked},
};

/// What there is of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// A program that does nothing wherever a guard has one.
    Empty,
    /// Our programs, loaded and not attached.
    Idle,
    /// The service's watch for checkpointers, and no guard.
    Watch,
    /// So many guards.
    Guards(usize),
    /// Nothing again.
    After,
}

impl Condition {
    /// Its name in tables and JSON.
    pub fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Empty => "empty".to_owned(),
            Self::Idle => "idle".to_owned(),
            Self::Watch => "watch".to_owned(),
            Self::Guards(count) => format!("guards-{count}"),
            Self::After => "after".to_owned(),
        }
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let guards = || name.strip_prefix("guards-")?.parse().ok();
        [
            Self::None,
            Self::Empty,
            Self::Idle,
            Self::Watch,
            Self::After,
        ]
        .into_iter()
        .find(|condition| condition.name() == name)
        .or_else(|| guards().map(Self::Guards))
        .ok_or_else(|| format!("{name} is no condition"))
    }
}

/// The cgroup that this guard is about.
pub(super) fn target(top: &Path, number: usize) -> PathBuf {
    top.join(number.to_string())
}

/// A process that brings a condition about, for as long as it lives: what it needs shall
/// not make this one bigger, nor its children members.
pub(super) struct InForce(Option<Child>);

impl InForce {
    pub(super) fn new(condition: Condition, top: &Path) -> Result<Self, Error> {
        if Locked::wait()?.open()?.is_some() {
            return Err(Error::InUse);
        }
        match condition {
            Condition::None => return Ok(Self(None)),
            Condition::After => {
                thread::sleep(ALL_SETTLED);
                return Ok(Self(None));
            }
            _ => {}
        }
        let failed = || Error::operation("start another process");
        let mut child = Command::new("/proc/self/exe")
            .args(["bench", "--hold", &condition.name()])
            .arg(top)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed())?;
        let output = child.stdout.take();
        let in_force = Self(Some(child));
        let mut said = String::new();
        if let Some(output) = output {
            BufReader::new(output)
                .read_line(&mut said)
                .map_err(failed())?;
        }
        match said.trim() {
            HELD => Ok(in_force),
            _ => Err(Error::Holder(condition.name())),
        }
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.stdin.take());
            // What it has left is told by the next condition.
            let _ = child.wait();
            thread::sleep(SETTLED);
        }
    }
}

/// How long the kernel may take to detach what nobody refers to any more: it does that
/// in the background, one program after the other. With many guards it takes longer.
const SETTLED: Duration = Duration::from_secs(1);
const ALL_SETTLED: Duration = Duration::from_secs(5);

/// What a holder says when all guards are in force.
const HELD: &str = "held";

/// Brings a condition about, says so, and ends it when nothing more can be read from
/// standard input.
///
/// # Errors
/// When it cannot be brought about.
pub fn hold(condition: Condition, top: &Path) -> Result<(), Error> {
    let hierarchies = match Cgroup::open(&target(top, 0))?.version() {
        Version::V1 => Hierarchies {
            v1: true,
            v2: false,
        },
        Version::V2 => Hierarchies {
            v1: false,
            v2: true,
        },
    };
    match condition {
        Condition::None | Condition::After => wait(),
        Condition::Empty => {
            let _programs = Empty::attach(&Locked::wait()?, hierarchies)?;
            wait()
        }
        Condition::Idle | Condition::Watch => {
            let wanted = wanted()?;
            let wanted = (condition == Condition::Watch).then_some(&wanted);
            automatic::watch(wanted, Level::Enforce)?;
            let waited = wait();
            automatic::unwatch()?;
            waited
        }
        Condition::Guards(count) => hold_guards(top, count),
    }
}

fn wait() -> Result<(), Error> {
    let said = || {
        let mut output = io::stdout();
        writeln!(output, "{HELD}")?;
        output.flush()?;
        io::stdin().read_to_end(&mut Vec::new()).map(drop)
    };
    said().map_err(Error::operation("wait"))
}

/// Each in a thread of its own, which is its holder.
fn hold_guards(top: &Path, count: usize) -> Result<(), Error> {
    let begun = Barrier::new(count + 1);
    let over = Barrier::new(count + 1);
    let held = AtomicUsize::new(0);
    thread::scope(|scope| {
        let holders: Vec<_> = (0..count)
            .map(|number| {
                let (begun, over, held) = (&begun, &over, &held);
                scope.spawn(move || {
                    let guard = begin(&target(top, number));
                    held.fetch_add(usize::from(guard.is_ok()), Ordering::Relaxed);
                    begun.wait();
                    over.wait();
                    guard.and_then(|guard| Ok(guard.end()?)).map(drop)
                })
            })
            .collect();
        begun.wait();
        let waited = match held.load(Ordering::Relaxed) == count {
            true => wait(),
            false => Ok(()),
        };
        over.wait();
        let mut results = holders.into_iter().map(|holder| {
            holder
                .join()
                .unwrap_or_else(|_| Err(Error::Holder("a thread".to_owned())))
        });
        waited.and(results.find(Result::is_err).unwrap_or(Ok(())))
    })
}

fn begin(path: &Path) -> Result<Guard, Error> {
    let cgroup = Cgroup::open(path)?;
    Ok(Guard::begin(vec![vec![cgroup]], &wanted()?)?)
}

/// What this host can do: less would cost less.
fn wanted() -> Result<Wanted, Error> {
    Ok(Wanted {
        allowed: Vec::new(),
        require: Some(Locked::strongest(Level::Enforce)?.0),
        at_most: Level::Enforce,
    })
}
