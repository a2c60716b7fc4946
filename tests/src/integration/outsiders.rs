//! What an outsider can do to a real dump of CRIU's: with the guard nothing,
//! without it all the harm that it is there for.
//!
//! CRIU freezes the cgroup, seizes its tasks, thaws it and works. It is held up
//! in both windows: before the seize, and after the thaw.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, eventually, within},
    dump::{criu_dump, log, named, restore, stop_criu},
    process::{LONG, Process, tool},
    scratch_folder,
};

pub(super) fn list(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    list.add("guarded_before_the_seize", |h| {
        guarded(h, Window::BeforeSeize)
    });
    list.add("guarded_after_the_thaw", |h| guarded(h, Window::AfterThaw));
    list_harms(list, &HARMS[..1]);
}

/// And every harm that is done without a guard.
pub(super) fn list_all(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    list_harms(list, &HARMS[1..]);
    list.add("unguarded_parent_frozen_before", frozen_before);
    list.add("guarded_criu_is_killed", criu_is_killed);
}

fn list_harms(list: &mut List<'_>, harms: &[(Act, Window, Harm)]) {
    for (act, window, harm) in harms.iter().copied() {
        if act == Act::CgroupKill && !list.hierarchy.has_kill() {
            continue;
        }
        let when = match window {
            Window::BeforeSeize => "before_the_seize",
            Window::AfterThaw => "after_the_thaw",
        };
        list.add(&format!("unguarded_{}_{when}", act.name()), move |h| {
            unguarded(h, act, window, harm)
        });
    }
}

/// When the outsider comes.
#[derive(Clone, Copy, PartialEq)]
enum Window {
    /// The cgroup is frozen, no task is seized.
    BeforeSeize,
    /// CRIU has thawed it, and works in its tasks.
    AfterThaw,
}

/// What the outsider does.
#[derive(Clone, Copy, PartialEq)]
enum Act {
    Freeze,
    FreezeParent,
    Thaw,
    MoveOut,
    MoveIn,
    KillChild,
    KillRoot,
    Stop,
    CgroupKill,
    Trace,
    WriteMemory,
}

impl Act {
    const ALL: [Self; 11] = [
        Self::Freeze,
        Self::FreezeParent,
        Self::Thaw,
        Self::MoveOut,
        Self::MoveIn,
        Self::KillChild,
        Self::KillRoot,
        Self::Stop,
        Self::CgroupKill,
        Self::Trace,
        Self::WriteMemory,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::FreezeParent => "freeze_of_the_parent",
            Self::Thaw => "thaw",
            Self::MoveOut => "move_out",
            Self::MoveIn => "move_in",
            Self::KillChild => "kill_of_a_child",
            Self::KillRoot => "kill_of_the_root",
            Self::Stop => "stop",
            Self::CgroupKill => "cgroup_kill",
            Self::Trace => "trace",
            Self::WriteMemory => "write_to_memory",
        }
    }
}

/// What comes of it without a guard.
#[derive(Clone, Copy, PartialEq)]
enum Harm {
    /// CRIU hangs, and the cgroup is frozen.
    Hangs,
    /// Tasks run while CRIU takes them for frozen.
    Runs,
    /// The dump fails.
    Fails,
    /// CRIU says that all is well, and one process is not restored alive.
    LosesAProcess,
    /// CRIU says that all is well.
    Unnoticed,
}

const HARMS: [(Act, Window, Harm); 10] = [
    (Act::Freeze, Window::AfterThaw, Harm::Hangs),
    (Act::FreezeParent, Window::AfterThaw, Harm::Hangs),
    (Act::Thaw, Window::BeforeSeize, Harm::Runs),
    (Act::MoveOut, Window::BeforeSeize, Harm::Fails),
    (Act::MoveOut, Window::AfterThaw, Harm::Unnoticed),
    (Act::MoveIn, Window::AfterThaw, Harm::Unnoticed),
    (Act::KillChild, Window::AfterThaw, Harm::LosesAProcess),
    (Act::KillRoot, Window::AfterThaw, Harm::Fails),
    (Act::CgroupKill, Window::AfterThaw, Harm::Fails),
    (Act::WriteMemory, Window::AfterThaw, Harm::Unnoticed),
];

/// A workload in `target`, below `parent`, and somebody else outside. In the
/// order in which they can be removed.
struct Scene {
    foreign: Workload,
    workload: Workload,
    child: i32,
    target: Cgroup,
    elsewhere: Cgroup,
    parent: Cgroup,
    images: PathBuf,
}

impl Scene {
    fn new(hierarchy: Hierarchy) -> Result<Self> {
        let parent = Cgroup::new(hierarchy)?;
        let elsewhere = parent.child("elsewhere")?;
        let target = parent.child("target")?;
        let workload = Workload::start(&[&target], 3)?;
        let foreign = Workload::start(&[&elsewhere], 0)?;
        workload.expect_counting()?;
        let pids = target.pids()?;
        let child = *pids
            .iter()
            .find(|pid| **pid != workload.pid)
            .context("a child")?;
        let images = scratch_folder("images")?;
        Ok(Self {
            foreign,
            workload,
            child,
            target,
            elsewhere,
            parent,
            images,
        })
    }

    /// The errno, or 0 when it went through.
    fn act(&self, act: Act) -> Result<i32> {
        let hierarchy = self.target.hierarchy;
        let write = |cgroup: &Cgroup, file: &str, value: &str| match cgroup.write(file, value) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        let signal = |pid: i32, signal| match kill(Pid::from_raw(pid), signal) {
            Ok(()) => 0,
            Err(errno) => errno as i32,
        };
        let child = self.child.to_string();
        Ok(match act {
            Act::Freeze => write(&self.target, hierarchy.file(), hierarchy.frozen()),
            Act::FreezeParent => write(&self.parent, hierarchy.file(), hierarchy.frozen()),
            Act::Thaw => write(&self.target, hierarchy.file(), hierarchy.thawed()),
            Act::MoveOut => write(&self.elsewhere, "cgroup.procs", &child),
            Act::MoveIn => write(&self.target, "cgroup.procs", &self.foreign.pid.to_string()),
            Act::KillChild => signal(self.child, Signal::SIGKILL),
            Act::KillRoot => signal(self.workload.pid, Signal::SIGKILL),
            Act::Stop => signal(self.child, Signal::SIGSTOP),
            Act::CgroupKill => write(&self.target, "cgroup.kill", "1"),
            Act::Trace => tool(["access", "ptrace", &child])?.code,
            Act::WriteMemory => tool(["access", "process_vm", &child])?.code,
        })
    }

    /// CRIU, held up in the window.
    fn criu(&self, command: &mut Command, window: Window) {
        let file = match (window, self.target.hierarchy) {
            (Window::AfterThaw, hierarchy) => hierarchy.file(),
            (Window::BeforeSeize, Hierarchy::V1) => "tasks",
            (Window::BeforeSeize, Hierarchy::V2) => "cgroup.threads",
        };
        command.args(["strace", "-o", "/dev/null", "-e"]);
        command.arg(match window {
            Window::AfterThaw => "inject=write:delay_exit=3000000",
            Window::BeforeSeize => "inject=openat:delay_enter=3000000:when=1",
        });
        command.arg("-P").arg(self.target.path.join(file));
        criu_dump(command, self.workload.pid, &self.target, &self.images);
        command.arg("--leave-running");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.images.join("dump.log")).unwrap_or_default()
    }

    /// Stops CRIU in the window.
    fn hold(&self, window: Window, criu: &mut Process) -> Result<Pid> {
        within(LONG, "CRIU comes to the window", || {
            ensure!(!criu.has_ended()?, "CRIU has ended before");
            Ok(match window {
                // It has its log before it freezes.
                Window::BeforeSeize => !self.log().is_empty() && self.target.state()? == "FROZEN",
                Window::AfterThaw => self.has_seized() && self.target.state()? == "THAWED",
            })
        })?;
        stop_criu()
    }

    fn has_seized(&self) -> bool {
        self.log().contains("SEIZE ")
    }
}

fn guarded(hierarchy: Hierarchy, window: Window) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let since = scene.workload.counters()?;
    let mut command = Command::new("freezer-guard");
    command.args([
        "run",
        "--freeze",
        "--timeout",
        "90s",
        "--cgroup",
        &scene.target.text(),
        "--",
    ]);
    scene.criu(&mut command, window);
    let mut criu = Process::spawn(&mut command)?;
    let held = scene.hold(window, &mut criu)?;
    let mut refused = 0;
    for act in Act::ALL {
        if act == Act::CgroupKill && !hierarchy.has_kill() {
            continue;
        }
        let errno = scene.act(act)?;
        // See `violations::ptrace`.
        let expected = match act {
            Act::WriteMemory => libc::EPERM,
            _ => libc::EBUSY,
        };
        ensure!(
            errno == expected,
            "{} gave {}",
            act.name(),
            Errno::from_raw(errno)
        );
        refused += 1;
    }
    ensure!(
        scene.has_seized() == (window == Window::AfterThaw),
        "CRIU was not held up in the window"
    );
    kill(held, Signal::SIGCONT)?;
    criu.wait(LONG)?
        .expect(0)
        .with_context(|| log(&scene.images, "dump.log"))?
        .says(&format!("refused {refused} attempts"))?;
    ensure!(
        scene.target.state()? == "THAWED",
        "left {}",
        scene.target.state()?
    );
    scene.workload.expect_counting().context("left running")?;
    scene.foreign.expect_counting()?;
    scene.target.kill_all()?;
    restore(&scene.workload, &scene.images, &since)
}

fn unguarded(hierarchy: Hierarchy, act: Act, window: Window, harm: Harm) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let mut command = Command::new("env");
    scene.criu(&mut command, window);
    let mut criu = Process::spawn(&mut command)?;
    let held = scene.hold(window, &mut criu)?;
    let errno = scene.act(act)?;
    ensure!(errno == 0, "the act gave {}", Errno::from_raw(errno));
    if harm == Harm::Runs {
        let before = scene.workload.counters()?;
        eventually("it runs", || Ok(scene.workload.counters()? != before))?;
        ensure!(!scene.has_seized(), "CRIU has seized it meanwhile");
    }
    kill(held, Signal::SIGCONT)?;
    match harm {
        Harm::Hangs => {
            expect_hang(&scene, &mut criu)?;
            kill_criu(criu)?;
            scene.parent.thaw()?;
            return scene.target.thaw();
        }
        Harm::Runs => kill_criu(criu)?,
        Harm::Fails => {
            let code = criu.wait(LONG)?.code;
            ensure!(code != 0, "the dump is called good");
        }
        Harm::Unnoticed | Harm::LosesAProcess => {
            criu.wait(LONG)?.expect(0)?;
        }
    }
    if act == Act::MoveOut && harm == Harm::Unnoticed {
        ensure!(
            !scene.target.pids()?.contains(&scene.child),
            "it was not moved"
        );
    }
    if harm == Harm::LosesAProcess {
        let since = scene.workload.counters()?;
        scene.target.kill_all()?;
        ensure!(
            restore(&scene.workload, &scene.images, &since).is_err(),
            "all processes are there again"
        );
    }
    Ok(())
}

/// With a guard it is refused at the begin: `misuse::frozen_ancestor`.
fn frozen_before(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    scene.parent.freeze()?;
    let mut command = Command::new("env");
    command.arg("--");
    criu_dump(
        &mut command,
        scene.workload.pid,
        &scene.target,
        &scene.images,
    );
    let mut criu = Process::spawn(&mut command)?;
    if hierarchy == Hierarchy::V1 {
        let code = criu.wait(LONG)?.code;
        ensure!(code != 0, "the dump is called good");
    } else {
        eventually("it has a log", || Ok(!scene.log().is_empty()))?;
        expect_hang(&scene, &mut criu)?;
        kill_criu(criu)?;
    }
    scene.parent.thaw()?;
    scene.target.thaw()
}

/// It writes nothing to its log any more, and the cgroup is not thawed. (v1 may
/// never call it FROZEN: its tasks are under ptrace.)
fn expect_hang(scene: &Scene, criu: &mut Process) -> Result<()> {
    let start = Instant::now();
    let mut last = (scene.log().len(), Instant::now());
    while last.1.elapsed() < Duration::from_secs(8) {
        ensure!(!criu.has_ended()?, "CRIU does not hang");
        ensure!(start.elapsed() < LONG, "CRIU goes on");
        thread::sleep(Duration::from_millis(200));
        let size = scene.log().len();
        if size != last.0 {
            last = (size, Instant::now());
        }
    }
    ensure!(scene.target.state()? != "THAWED", "nobody freezes it");
    Ok(())
}

/// strace and what it runs.
fn kill_criu(criu: Process) -> Result<()> {
    for pid in named(&["criu", "strace"])? {
        // It may have ended just now.
        let _ = kill(pid, Signal::SIGKILL);
    }
    if criu.wait(LONG)?.code == 0 {
        bail!("CRIU came to a good end")
    }
    Ok(())
}

/// The tasks run on, and the guard has gone with CRIU.
fn criu_is_killed(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let mut command = Command::new("freezer-guard");
    command.args(["run", "--freeze", "--cgroup", &scene.target.text(), "--"]);
    scene.criu(&mut command, Window::AfterThaw);
    let mut criu = Process::spawn(&mut command)?;
    scene.hold(Window::AfterThaw, &mut criu)?;
    kill_criu(criu)?;
    ensure!(
        scene.target.state()? == "THAWED",
        "left {}",
        scene.target.state()?
    );
    scene.workload.expect_counting()?;
    scene.target.freeze()?;
    scene.target.thaw()
}
