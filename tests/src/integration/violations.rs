//! Writes and moves that get past the refusals are noticed, and `run` acts on them.

mod memory;
mod tasks;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, eventually},
    lifecycle::expect_clean,
    process::{Finished, Held, LONG, Process, guards, run, tool},
};

pub(super) fn list(list: &mut List<'_>) {
    for splice in [false, true] {
        let how = if splice { "splice" } else { "userfaultfd" };
        list.add(&format!("write_under_way_by_{how}"), move |h| {
            under_way(h, splice)
        });
    }
    list.add("write_to_parent_under_way", parent_under_way);
    list.add("write_under_way_is_mended_before_checkpointing", mended);
    list.add("kernel_kills", tasks::kernel_kills);
    list.add("signals", tasks::signals);
    list.add("ptrace", tasks::ptrace);
    list.add("memory_through_an_older_descriptor", |h| {
        memory::permitted(h, "late_mem", 0)
    });
    list.add("memory_written_in_part", |h| {
        memory::permitted(h, "partial_mem", libc::EFAULT)
    });
    list.add("clear_refs", memory::clear_refs);
    list.add("uprobe", memory::uprobe);
    list.add("alarm", tasks::alarm);
    list.add("parent_death_signal", tasks::parent_death);
    list.add(
        "tasks_of_the_target_among_themselves",
        tasks::among_themselves,
    );
    list.add("policy_warn", warn);
    list.add("policy_kill", kill_policy);
    list.add("allow", allow);
    if list.hierarchy.has_kill() {
        list.add("cgroup_kill_under_way", cgroup_kill);
    }
    // On v1 some writes are refused beside any guard.
    list.add_alone("move_under_way", move_under_way);
    // The program that notices it is attached after it began.
    list.add_alone("memory_write_under_way", |h| {
        memory::permitted(h, "stalled_mem", 0)
    });
    list.add_alone("moves_out_by_every_write", unreadable);
    // A part of it is held at another level.
    list.add_alone("signal_that_nobody_handles", tasks::fatal_signal);
}

/// A write that hangs in the kernel, checked already.
fn stalled(cgroup: &Cgroup, file: &str, value: &str, splice: bool) -> Result<Process> {
    let mut command = Command::new("guest-tool");
    command.arg("stalled");
    if splice {
        command.arg("--splice");
    }
    let mut writer = Process::spawn(command.arg(cgroup.path.join(file)).arg(value))?;
    writer.expect_line("ready")?;
    Ok(writer)
}

/// That the run ended as violated, of this kind and by this process.
fn expect_violated(finished: Finished, pid: Pid, words: &str) -> Result<()> {
    finished
        .expect(73)?
        .says("VIOLATED")?
        .says("do not trust this checkpoint")?
        .says(&format!("pid {pid}, uid 0) {words}"))?;
    Ok(())
}

/// A process of the workload's that is not its root.
fn child_of(workload: &Workload, target: &Cgroup) -> Result<i32> {
    let pids = target.pids()?;
    let child = pids.into_iter().find(|pid| *pid != workload.pid);
    child.context("a child")
}

fn violations(kind: &str) -> Result<u64> {
    let guards = guards()?;
    guards[0]["violations"][kind].as_u64().context("a count")
}

fn under_way(hierarchy: Hierarchy, splice: bool) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut writer = stalled(&target, hierarchy.file(), hierarchy.thawed(), splice)?;
    let held = Held::new(&[&target])?;
    ensure!(violations("freeze")? == 0, "counted before it was done");
    writer.tell("go")?;
    let pid = writer.pid();
    let code = writer.wait(LONG)?.code;
    if splice && code == libc::EBUSY {
        // Linux 6.1 asks again once there is something in the pipe
        // (`do_iter_write`), 6.12 does not.
        held.release()?.expect(0)?.says("refused 1 attempt")?;
        return expect_clean();
    }
    ensure!(code == 0, "the write under way ended with {code}");
    ensure!(violations("freeze")? == 1, "{:?}", guards()?);
    let finished = held.release()?.expect(73)?;
    finished
        .says("VIOLATED")?
        .says(&format!("pid {pid}, uid 0) thawed {}", target.text()))?
        .says("do not trust this checkpoint")?;
    workload.expect_counting()?;
    expect_clean()
}

/// The freeze of a cgroup above would hang CRIU.
fn parent_under_way(hierarchy: Hierarchy) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let targets = [parent.child("one")?, parent.child("two")?];
    let mut writer = stalled(&parent, hierarchy.file(), hierarchy.frozen(), false)?;
    let helds = [Held::new(&[&targets[0]])?, Held::new(&[&targets[1]])?];
    writer.tell("go")?;
    let pid = writer.pid();
    writer.wait(LONG)?.expect(0)?;
    for held in helds {
        held.release()?
            .expect(73)?
            .says(&format!("pid {pid}, uid 0) froze {}", parent.text()))?;
    }
    parent.thaw()?;
    drop(targets);
    expect_clean()
}

/// A thaw lands while the target is still being frozen.
fn mended(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut slow =
        Process::spawn(Command::new("guest-tool").args(["stall", "--cgroup", &target.text()]))?;
    slow.expect_line("ready")?;
    let mut writer = stalled(&target, hierarchy.file(), hierarchy.thawed(), false)?;
    let mut held = Held::start(Held::command(&[&target]).args(["--freeze-timeout", "1m"]))?;
    eventually("it is being frozen", || Ok(target.state()? == "FREEZING"))?;
    // Its thread that reads is frozen, and has to find this in the moment that it is thawed.
    slow.tell("go")?;
    writer.tell("go")?;
    writer.wait(LONG)?.expect(0)?;
    held.wait_held()?;
    ensure!(target.state()? == "FROZEN", "was not frozen again");
    let guard = &guards()?[0];
    ensure!(
        guard["repaired"]["freeze"] == 1 && guard["violations"]["freeze"] == 0,
        "{guard}"
    );
    held.release()?
        .expect(0)?
        .says("freezing and verifying again")?;
    workload.expect_counting()?;
    expect_clean()
}

/// On v2 the permission is asked for after the text was read: nothing is under
/// way there. On v1 the move is done, and noticed.
fn move_under_way(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let foreign = Workload::start(&[&elsewhere], 0)?;
    let child = target.pids()?[1];
    let mut into = stalled(&target, "cgroup.procs", &foreign.pid.to_string(), false)?;
    let mut out = stalled(&elsewhere, "cgroup.procs", &child.to_string(), false)?;
    let held = Held::new(&[&target])?;
    let pids = [into.pid(), out.pid()];
    for writer in [&mut into, &mut out] {
        writer.tell("go")?;
    }
    let codes = [into.wait(LONG)?.code, out.wait(LONG)?.code];
    if hierarchy == Hierarchy::V2 {
        ensure!(codes == [libc::EBUSY; 2], "moves under way: {codes:?}");
        held.release()?.expect(0)?.says("refused 2 attempts")?;
    } else {
        ensure!(codes == [0; 2], "moves under way: {codes:?}");
        ensure!(violations("migrate")? == 2, "{:?}", guards()?);
        let what = [
            format!(
                "pid {}, uid 0) moved pid {} into {}",
                pids[0],
                foreign.pid,
                target.text()
            ),
            format!(
                "pid {}, uid 0) moved pid {child} out of {}",
                pids[1],
                target.text()
            ),
        ];
        held.release()?.expect(73)?.says(&what[0])?.says(&what[1])?;
    }
    workload.expect_counting()?;
    foreign.expect_counting()?;
    expect_clean()
}

/// On v1 a move that is written in another way than by `write` may be one out of the target: it
/// is refused, and only while a cgroup of that hierarchy is guarded.
fn unreadable(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let foreign = Workload::start(&[&elsewhere], 0)?;
    let file = elsewhere.path.join("cgroup.procs").display().to_string();
    let write = |method: &str, text: &str| -> Result<i32> {
        Ok(tool(["write", method, &file, text])?.code)
    };
    let (own, guarded) = (foreign.pid.to_string(), workload.pid.to_string());
    let held = Held::new(&[&target])?;
    let mut refused = 0;
    for method in [
        "write", "writev", "pwrite", "pwritev2", "splice", "aio", "io_uring",
    ] {
        let own = write(method, &own)?;
        let readable =
            hierarchy == Hierarchy::V2 || ["write", "pwrite", "pwritev2"].contains(&method);
        let expected = if readable { 0 } else { libc::EBUSY };
        ensure!(own == expected, "{method} of somebody else: {own}");
        let of_target = write(method, &guarded)?;
        ensure!(
            of_target == libc::EBUSY,
            "{method} out of the target: {of_target}"
        );
        refused += 1 + u64::from(!readable);
    }
    // As a shell writes it; and the kernel takes a leading zero for that of an octal number.
    ensure!(
        write("write", &format!("{}\n", foreign.pid))? == 0,
        "a line"
    );
    if hierarchy == Hierarchy::V1 {
        let octal = format!("0{}", foreign.pid);
        ensure!(write("write", &octal)? == libc::EBUSY, "octal");
        refused += 1;
    }
    // Nobody: what the kernel says is left alone.
    ensure!(write("write", "4194304")? == libc::ESRCH);
    held.release()?
        .expect(0)?
        .says(&format!("refused {refused} attempts"))?;
    ensure!(write("splice", &own)? == 0);
    workload.expect_counting()?;
    expect_clean()
}

fn violate(target: &Cgroup, writer: &mut Process) -> Result<()> {
    writer.tell("go")?;
    eventually("it is thawed", || Ok(target.state()? == "THAWED"))
}

fn warn(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut writer = stalled(&target, hierarchy.file(), hierarchy.thawed(), false)?;
    let mut held = Held::start(Held::command(&[&target]).args(["--on-violation", "warn"]))?;
    held.wait_held()?;
    violate(&target, &mut writer)?;
    held.release()?
        .expect(0)?
        .says("VIOLATED")?
        .says("do not trust")?;
    expect_clean()
}

fn kill_policy(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut writer = stalled(&target, hierarchy.file(), hierarchy.thawed(), false)?;
    let mut command = Held::command(&[&target]);
    command.args([
        "--on-violation",
        "kill",
        "--",
        "bash",
        "-c",
        "echo held; sleep 1000",
    ]);
    let mut process = Process::spawn(&mut command)?;
    process.expect_line("held")?;
    violate(&target, &mut writer)?;
    process
        .wait(LONG)?
        .expect(73)?
        .says("VIOLATED")?
        .says("killing bash")?;
    eventually("the guard goes", || Ok(guards()?.is_empty()))?;
    expect_clean()
}

/// One protection is lifted, the others are in force.
fn allow(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 2)?;
    let pids = target.pids()?;
    let pid = Pid::from_raw(workload.pid);
    let moved = *pids
        .iter()
        .find(|pid| **pid != workload.pid)
        .context("a child")?;
    for lifted in ["freeze", "migrate", "kill", "ptrace"] {
        let mut held = Held::start(Held::command(&[&target]).args(["--allow", lifted]))?;
        held.wait_held()?;
        ensure!(
            guards()?[0]["allowed"] == Value::from(vec![lifted]),
            "{:?}",
            guards()?
        );
        let stop = kill(pid, Signal::SIGSTOP);
        ensure!(
            stop.is_ok() == (lifted == "kill"),
            "{lifted}: SIGSTOP: {stop:?}"
        );
        if stop.is_ok() {
            kill(pid, Signal::SIGCONT)?;
        }
        let code = tool(["access", "process_vm", &pid.to_string()])?.code;
        ensure!(
            (code == 0) == (lifted == "ptrace"),
            "{lifted}: process_vm_writev: {code}"
        );
        let out = elsewhere.write("cgroup.procs", &moved.to_string());
        ensure!(
            out.is_ok() == (lifted == "migrate"),
            "{lifted}: move: {out:?}"
        );
        if out.is_ok() {
            target.expect_allowed("cgroup.procs", &moved.to_string())?;
        }
        let thaw = target.write(hierarchy.file(), hierarchy.thawed());
        ensure!(
            thaw.is_ok() == (lifted == "freeze"),
            "{lifted}: thaw: {thaw:?}"
        );
        held.release()?
            .expect(0)?
            .says("refused 3 attempts")
            .context(lifted)?;
    }
    run(Held::command(&[&target]).args(["--allow", "nothing", "--", "true"]))?.expect(64)?;
    workload.expect_counting()?;
    expect_clean()
}

fn cgroup_kill(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let _workload = Workload::start(&[&target], 2)?;
    let mut writer = stalled(&target, "cgroup.kill", "1", false)?;
    let held = Held::new(&[&target])?;
    writer.tell("go")?;
    eventually("all are killed", || Ok(violations("kill")? == 3))?;
    expect_violated(held.release()?, writer.pid(), "sent SIGKILL to pid")?;
    expect_clean()
}
