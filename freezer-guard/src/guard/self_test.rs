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
        uio::process_vm_readv,
        wait::waitpid,
    },
    unistd::Pid,
};

use super::Error;
use crate::{
    cgroup::{self, Cgroup, CreatedCgroups, Version},
    kernel::{self, CallResult, Hierarchies, Locked, ProgramReport, prerequisites::is_tracing_off},
};

/// The program that the kernel calls some time after the end of a task, and the longest wait for
/// that. Then nothing is known of it: with `rcu_nocbs` RCU can take 10 seconds (`CONFIG_RCU_LAZY`).
const LATE: &str = "task_free";
const TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Tests the programs if one of them was never tested. Detaches those that the kernel does not
/// call, and returns an error for each. If the kernel does not count calls for this process (it
/// lacks CAP_SYS_ADMIN), this tests nothing.
///
/// # Errors
/// When the kernel does not call a program that no guard goes without, or function tracing is off.
pub(super) fn try_new(
    lock: &Locked,
    hierarchies: Hierarchies,
) -> Result<Vec<kernel::Error>, Error> {
    if !lock.is_any_untried(hierarchies) {
        return Ok(Vec::new());
    }
    match enable_stats(Stats::RunTime) {
        Ok(_counting) => Ok(try_counted(lock, hierarchies)?.1),
        Err(_) => Ok(Vec::new()),
    }
}

/// Tests all programs that guards in these hierarchies need, and returns them as they were in the
/// test. `calls` is `None` if nothing is known: the kernel does not count calls for this process,
/// or an attempt was not possible. There is none for uprobes: a probe would write into other
/// processes.
///
/// # Errors
/// See [`try_new`].
pub(super) fn try_all(
    lock: &Locked,
    hierarchies: Hierarchies,
) -> Result<Vec<ProgramReport>, Error> {
    match enable_stats(Stats::RunTime) {
        Ok(_counting) => Ok(try_counted(lock, hierarchies)?.0),
        Err(_) => Ok(counted(lock.programs(hierarchies), &[], &[])),
    }
}

/// The same while the kernel counts calls.
fn try_counted(
    lock: &Locked,
    hierarchies: Hierarchies,
) -> Result<(Vec<ProgramReport>, Vec<kernel::Error>), Error> {
    let before = lock.programs(hierarchies);
    let mut tried = make_attempts();
    let called = |tried: &[&str]| counted(lock.programs(hierarchies), &before, tried);
    let is_late = |program: &ProgramReport| program.name == LATE;
    let mut programs = called(&tried);
    if programs
        .iter()
        .any(|program| is_never_called(program) && !is_late(program))
    {
        // Something may have been in the way of the first attempts.
        tried.extend(make_attempts());
        programs = called(&tried);
    }
    let start = Instant::now();
    let is_awaited = |program: &ProgramReport| is_late(program) && is_never_called(program);
    while programs.iter().any(is_awaited) && start.elapsed() < TIMEOUT {
        sleep(PAUSE);
        programs = called(&tried);
    }
    for program in programs.iter_mut().filter(|program| is_awaited(program)) {
        program.calls = None;
    }
    if is_tracing_off() {
        // No program is called then, and none can be detached.
        return Err(kernel::Error::TracingOff.into());
    }
    let mut never = Vec::new();
    for program in programs.iter().filter(|program| program.attached) {
        never.extend(lock.keep_result(&program.name, call_result(program))?);
    }
    Ok((programs, never))
}

/// What the self-test has shown of this program.
pub(crate) fn call_result(program: &ProgramReport) -> CallResult {
    match program.calls {
        Some(1..) => CallResult::Called,
        Some(0) => CallResult::NeverCalled,
        None => CallResult::Unknown,
    }
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
        program.calls = calls.filter(|_| tried.contains(&&*program.name));
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
    tried(
        make_thread(),
        &["task_alloc", LATE, "move_task_entry", "move_task_exit"],
    );
    // A number of the kernel's.
    tried(
        fs::read("/proc/sys/kernel/panic").map(drop),
        &["number_set_exit"],
    );
    // They have to be empty when they go.
    let mut made = CreatedCgroups::default();
    if let Ok(child) = OwnChild::spawn() {
        // This waits for the end of its `execve`.
        let seized = ptrace::seize(child.pid(), ptrace::Options::empty())
            .and_then(|()| ptrace::interrupt(child.pid()))
            .and_then(|()| waitpid(child.pid(), None))
            .and_then(|_| ptrace::detach(child.pid(), None));
        tried(
            seized.map_err(io::Error::from),
            &[
                "bprm_committed_creds",
                "committed_creds_entry",
                "ptrace_access_check",
                "ptrace_access_exit",
                "ptrace_attach_exit",
                "seize_exit",
                "detach_entry",
            ],
        );
        let file = |name: &str| format!("/proc/{}/{name}", child.0.id());
        tried(
            read_cmdline(Path::new(&file("cmdline"))),
            &["remote_vm_exit"],
        );
        let copied = process_vm_readv(child.pid(), &mut [], &[]);
        let copied = copied.map(drop).map_err(io::Error::from);
        tried(copied, &["process_vm_exit"]);
        // `CLEAR_REFS_MM_HIWATER_RSS`: the dirty bits stay.
        tried(fs::write(file("clear_refs"), "5"), &["clear_refs_exit"]);
        for mount in [cgroup::freezer_mount(), cgroup::unified_mount()] {
            if let Ok(Some(mount)) = mount {
                let (result, those) = freeze_and_move(&child, &mount, &mut made);
                tried(result, those);
            }
        }
        let killed = kill(child.pid(), Signal::SIGKILL).map_err(io::Error::from);
        tried(killed, &["task_kill", "signal_generate"]);
    }
    programs
}

/// Reads the arguments of a process from its memory, as soon as it has some.
fn read_cmdline(file: &Path) -> io::Result<()> {
    const ATTEMPTS: u32 = 50;
    for _ in 0..ATTEMPTS {
        if !fs::read(file)?.is_empty() {
            return Ok(());
        }
        sleep(PAUSE);
    }
    Err(io::Error::other("the child has no arguments"))
}

fn make_thread() -> io::Result<()> {
    let joined = thread::Builder::new().spawn(|| ())?.join();
    joined.map_err(|_| io::Error::other("a thread panicked"))
}

/// Moves the child into a cgroup that is there for this alone and out of it, and then freezes and
/// thaws the empty cgroup.
fn freeze_and_move(
    child: &OwnChild,
    mount: &Path,
    made: &mut CreatedCgroups,
) -> (io::Result<()>, &'static [&'static str]) {
    let path = mount.join(format!("freezer-guard-self-test-{}", id()));
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
            "apply_state_claim",
            "apply_state_entry",
            "apply_state_exit",
            "freezer_read_entry",
            "file_permission",
        ],
        Version::V2 => &[
            "freeze_claim",
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
        command.stdout(Stdio::null()).stderr(Stdio::null());
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
