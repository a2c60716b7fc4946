//! Whether the kernel calls each program. It need not call an attached program: a compiler may have
//! inlined the function.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use nix::{sys::ptrace, unistd::Pid};

use super::Check;
use crate::kernel::{Error, Hierarchies, Locked, ProgramReport};

/// The programs that nothing here calls: a uprobe would write into other processes.
const UNTRIED: [&str; 1] = ["set_swbp_exit"];

/// The program that is called some time after the end of a task.
const LATE: &str = "task_free";

/// While this exists the kernel counts the calls of every program.
pub(super) struct Calls {
    stats: Option<OwnedFd>,
    before: Vec<ProgramReport>,
}

impl Calls {
    /// Counts from here on, if the kernel can.
    pub(super) fn count(hierarchies: Hierarchies) -> Self {
        let programs = Locked::wait().map(|lock| lock.programs(hierarchies));
        Self {
            stats: enable_stats(Stats::RunTime).ok(),
            before: programs.unwrap_or_default(),
        }
    }

    /// The programs, with their calls since then, if there was a victim to call them. The end of a
    /// task is seen some time after it.
    ///
    /// # Errors
    /// When the lock of the pins cannot be had.
    pub(super) fn counted(
        &self,
        hierarchies: Hierarchies,
        victim: Option<&Victim>,
    ) -> Result<Vec<ProgramReport>, Error> {
        let is_tried = |program: &ProgramReport| {
            self.stats.is_some() && victim.is_some() && !UNTRIED.contains(&program.name)
        };
        const TIMEOUT: Duration = Duration::from_secs(3);
        let start = Instant::now();
        loop {
            let mut programs = Locked::wait()?.programs(hierarchies);
            for program in &mut programs {
                let before = self.before.iter().find(|old| old.name == program.name);
                let before = before.and_then(|before| before.calls).unwrap_or_default();
                program.calls = match is_tried(program) {
                    true => program.calls.map(|calls| calls.saturating_sub(before)),
                    false => None,
                };
            }
            let is_awaited =
                |program: &ProgramReport| program.name == LATE && is_never_called(program);
            if start.elapsed() > TIMEOUT || !programs.iter().any(is_awaited) {
                return Ok(programs);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

fn is_never_called(program: &ProgramReport) -> bool {
    program.attached && program.calls == Some(0)
}

/// A child of a thread that holds no guard. When dropped it has been killed.
pub(super) struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have been frozen until just now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the kernel call each program, by attempts on a child of its own and on this cgroup, which is
/// guarded. Their results do not matter: the kernel asks the programs first.
pub(super) fn exercise(cgroup: &Path) -> io::Result<Victim> {
    let thread = thread::Builder::new().spawn(|| ())?;
    let _ = thread.join();
    let mut victim = Command::new("sleep");
    let victim = victim.arg("60").stdin(Stdio::null()).spawn().map(Victim)?;
    let pid = victim.0.id();
    // Into the target, which is refused, and into the cgroup above.
    for cgroup in cgroup.ancestors().take(2) {
        let _ = fs::write(cgroup.join("cgroup.procs"), pid.to_string());
    }
    let proc = Path::new("/proc").join(pid.to_string());
    for file in ["cmdline", "stat"] {
        let _ = fs::read(proc.join(file));
    }
    // `CLEAR_REFS_MM_HIWATER_RSS`: the dirty bits stay.
    let _ = fs::write(proc.join("clear_refs"), "5");
    let _ = fs::read("/proc/sys/kernel/panic");
    let victim_pid = Pid::from_raw(pid.cast_signed());
    let _ = ptrace::seize(victim_pid, ptrace::Options::empty());
    let _ = nix::sys::signal::kill(victim_pid, nix::sys::signal::Signal::SIGKILL);
    Ok(victim)
}

/// Complains of programs that the kernel never calls, if there are any.
pub(super) fn check(programs: &[ProgramReport]) -> Option<Check> {
    let never: Vec<_> = programs
        .iter()
        .filter(|program| is_never_called(program))
        .map(|program| format!("{} ({})", program.name, program.hook))
        .collect();
    (!never.is_empty()).then(|| {
        Check::limited(
            "programs",
            format!("the kernel never calls {}", never.join(", ")),
            "trust no guard of what these programs protect, and please report it",
        )
    })
}
