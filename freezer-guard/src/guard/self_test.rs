//! The self-test: whether the kernel calls each attached program. It need not, for instance if a
//! compiler has inlined the function. The first guard that needs a program tests it, and `doctor`
//! tests all of them again.

use std::{
    fs, io,
    path::Path,
    process::{Child, Command, Stdio, id},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::Error;
use crate::{
    cgroup::{self, Cgroup, CreatedCgroups, Version},
    kernel::{self, CallResult, Hierarchies, Locked, ProgramReport},
};

/// The program that the kernel calls some time after the end of a task, and the longest wait for
/// that. Then nothing is known of it.
const LATE: &str = "task_free";
const TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Tests the programs if one of them was never tested. Detaches those that the kernel does not
/// call, and returns an error for each.
///
/// # Errors
/// When the kernel does not call a program that no guard goes without.
pub(super) fn try_new(
    lock: &Locked,
    hierarchies: Hierarchies,
) -> Result<Vec<kernel::Error>, Error> {
    match lock.is_any_untried(hierarchies) {
        true => Ok(try_all(lock, hierarchies)?.1),
        false => Ok(Vec::new()),
    }
}

/// Tests all programs that guards in these hierarchies need, and returns them as they were in the
/// test. `calls` is `None` if the kernel does not count calls for this process (it lacks
/// CAP_SYS_ADMIN), if an attempt was not possible, and for uprobes, since a probe would write into
/// other processes.
///
/// # Errors
/// See [`try_new`].
pub(super) fn try_all(
    lock: &Locked,
    hierarchies: Hierarchies,
) -> Result<(Vec<ProgramReport>, Vec<kernel::Error>), Error> {
    let stats = enable_stats(Stats::RunTime);
    let before = lock.programs(hierarchies);
    let Ok(_counting) = stats else {
        return Ok((counted(before, &[], &[]), Vec::new()));
    };
    let tried = make_attempts();
    let start = Instant::now();
    let programs = loop {
        let programs = counted(lock.programs(hierarchies), &before, &tried);
        let is_awaited = |program: &ProgramReport| program.name == LATE && is_never_called(program);
        if start.elapsed() > TIMEOUT || !programs.iter().any(is_awaited) {
            break programs;
        }
        sleep(PAUSE);
    };
    let mut never = Vec::new();
    for program in programs.iter().filter(|program| program.attached) {
        let result = match program.calls {
            Some(1..) => CallResult::Called,
            Some(0) if program.name != LATE => CallResult::NeverCalled,
            _ => CallResult::Unknown,
        };
        never.extend(lock.keep_result(program.name, result)?);
    }
    Ok((programs, never))
}

/// Returns whether the kernel did not call a program that is attached.
pub(crate) fn is_never_called(program: &ProgramReport) -> bool {
    program.attached && program.calls == Some(0)
}

/// The calls of those that were tried, since `before`.
fn counted(
    mut programs: Vec<ProgramReport>,
    before: &[ProgramReport],
    tried: &[&str],
) -> Vec<ProgramReport> {
    for program in &mut programs {
        let old = before.iter().find(|old| old.name == program.name);
        let old = old.and_then(|old| old.calls).unwrap_or_default();
        let calls = program.calls.map(|calls| calls.saturating_sub(old));
        program.calls = calls.filter(|_| tried.contains(&program.name));
    }
    programs
}

/// Does to a child and a cgroup of our own what the programs are there for, and returns the
/// programs that the kernel has to have called for that. If an attempt is not possible here,
/// nothing is known of its programs.
fn make_attempts() -> Vec<&'static str> {
    let mut programs = Vec::new();
    let mut tried = |result: io::Result<()>, those: &[&'static str]| {
        if result.is_ok() {
            programs.extend(those);
        }
    };
    tried(make_thread(), &["task_alloc", LATE, "move_task_exit"]);
    // A number of the kernel's.
    tried(
        fs::read("/proc/sys/kernel/panic").map(drop),
        &["number_set_exit"],
    );
    if let Ok(child) = OwnChild::spawn() {
        tried(Ok(()), &["bprm_committed_creds", "committed_creds_entry"]);
        for mount in [cgroup::freezer_mount(), cgroup::unified_mount()] {
            if let Ok(Some(mount)) = mount {
                let (result, those) = freeze_and_move(&child, &mount);
                tried(result, those);
            }
        }
        let file = |name: &str| format!("/proc/{}/{name}", child.0.id());
        tried(fs::read(file("cmdline")).map(drop), &["remote_vm_exit"]);
        let access = ["ptrace_access_check", "ptrace_access_exit"];
        tried(fs::read(file("stat")).map(drop), &access);
        // `CLEAR_REFS_MM_HIWATER_RSS`: the dirty bits stay.
        tried(fs::write(file("clear_refs"), "5"), &["clear_refs_exit"]);
        let seized = ptrace::seize(child.pid(), ptrace::Options::empty());
        tried(seized.map_err(io::Error::from), &["ptrace_attach_exit"]);
        let killed = kill(child.pid(), Signal::SIGKILL).map_err(io::Error::from);
        tried(killed, &["task_kill", "signal_generate"]);
    }
    programs
}

fn make_thread() -> io::Result<()> {
    let joined = thread::Builder::new().spawn(|| ())?.join();
    joined.map_err(|_| io::Error::other("a thread panicked"))
}

/// Moves the child into a cgroup that is there for this alone and out of it, and then freezes and
/// thaws the empty cgroup.
fn freeze_and_move(child: &OwnChild, mount: &Path) -> (io::Result<()>, &'static [&'static str]) {
    let path = mount.join(format!("freezer-guard-self-test-{}", id()));
    let mut made = CreatedCgroups::default();
    let opened = made.make(&path).and_then(|()| Cgroup::open(&path));
    let Ok(cgroup) = opened else {
        return (Ok(()), &[]);
    };
    let put_into = |path: &Path| fs::write(path.join("cgroup.procs"), child.0.id().to_string());
    let moved = put_into(&path).and_then(|()| put_into(mount));
    let frozen = cgroup.freeze().and_then(|()| cgroup.thaw());
    let read = frozen.and_then(|()| cgroup.freezer_state());
    let result = moved.and(read.map(drop).map_err(io::Error::other));
    let programs: &[_] = match cgroup.version() {
        Version::V1 => &[
            "apply_state_entry",
            "apply_state_exit",
            "freezer_read_entry",
            "file_permission",
        ],
        Version::V2 => &[
            "freeze_entry",
            "freeze_exit",
            "freeze_show_entry",
            "inode_permission",
            "attach_permissions_entry",
            "attach_permissions_exit",
            "file_permission",
            "file_permission_v2",
        ],
    };
    (result, programs)
}

/// A child of ours, which ends with this.
struct OwnChild(Child);

impl OwnChild {
    fn spawn() -> io::Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null());
        command.spawn().map(Self)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
