//! Checkpoints that nobody has put under a guard, found by the service.

mod dumps;
mod frozen;
mod long;
mod programs;
pub(super) mod rpc;
mod seized;
mod violated;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, unique},
    mounts::Mount,
    process::{Held, LONG, Process, guard, guards, last_guard, run, tool},
    scratch,
    service::{
        eventually, expect_anew, expect_idle, journal, journal_fields, main_pid, refuses_writes,
        systemctl,
    },
    varlink::SOCKET,
};
use violated::{Moment, dump_fails};

pub(super) fn list(list: &mut List<'_>) {
    list.add("from_the_first_write_on", first_write);
    list.add("refuses_at_the_first_write", first_moment);
    list.add("until_the_last_process_ends", last_process);
    list.add("beside_a_mount_without_text", odd_mount);
    list.add("not_for_the_file_of_a_user", programs::files);
    list.add("not_beside_another_guard", busy);
    list.add("not_if_switched_off", programs::off);
    list.add("named_by_the_configuration", programs::names);
    list.add("check_costs_nothing", check);
    list.add("service_killed_at_each_point", killed);
    list.add("violation_is_kept", violation);
    list.add("violation_is_kept_without_room", violated::without_room);
    if list.can_dump() {
        list.add("dump_by_an_engine", dumps::engine);
        list.add("dump_where_paused_before", dumps::paused);
        list.add("over_before_the_exit", dumps::over_before_the_exit);
        list.add("one_container_of_a_paused_pod", dumps::pod);
        list.add("restore", dumps::restore);
        list.add("restore_is_guarded", |h| dumps::guarded_restore(h, false));
        list.add("restore_by_an_engine_is_guarded", |h| {
            dumps::guarded_restore(h, true)
        });
        list.add("restore_in_the_foreground", dumps::attached_restore);
        list.add("thaw_on_the_answer", |h| rpc::thaws(h, 5));
        list.add("dumps_by_criu_service", rpc::service);
        list.add("dump_by_a_daemon", rpc::daemon);
        list.add("pre_dump_and_dump_by_one_process", rpc::swrk);
        list.add("dump_without_a_freezer", seized::without_freezer);
        list.add("violated_before_the_seize", |h| {
            dump_fails(h, Moment::BeforeTheSeize, &[])
        });
        list.add("violated_pre_dump", violated::pre_dump_fails);
        list.add("violated_before_the_inventory", |h| {
            dump_fails(h, Moment::BeforeTheInventory, &["--leave-running"])
        });
    }
    list.add("violated_completes_no_image", violated::inventory);
    list.add("violated_only_warns", violated::warns);
    list.add("memory_copy_under_way", violated::copy_under_way);
    list.add("killed_while_frozen", frozen::is_thawed);
    list.add("killed_and_paused_since", frozen::is_paused_since);
    list.add("killed_where_paused_before", frozen::was_paused_before);
    list.add("killed_after_its_thaw", frozen::thaws_itself);
    list.add("killed_and_tried_again", frozen::is_tried_again);
    list.add("exits_while_frozen", frozen::exits);
    list.add("takes_long", long::takes_long);
    list.add("stray", seized::stray);
    list.add("where_paused_before", frozen::is_guarded_where_paused);
    list.add("what_it_restores_is_free", dumps::restored);
}

/// A shell that is called criu, with a file of its own.
pub(super) struct FakeCriu {
    path: PathBuf,
}

impl FakeCriu {
    pub(super) fn new() -> Result<Self> {
        Self::called("criu")
    }

    fn called(name: &str) -> Result<Self> {
        let dir = PathBuf::from("/var/tmp").join(unique());
        fs::create_dir_all(&dir)?;
        let path = dir.join(name);
        fs::copy("/bin/bash", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { path })
    }

    /// Runs what it is told, line by line.
    fn start(&self) -> Result<Process> {
        Process::spawn(&mut self.command())
    }

    pub(super) fn command(&self) -> Command {
        const SHELL: &str = r#"while read -r line; do eval "$line"; echo "rc $?"; done; exit 0"#;
        let mut command = Command::new(&self.path);
        command.args(["-c", SHELL]);
        command
    }
}

pub(super) fn sh(process: &mut Process, line: &str) -> Result<()> {
    process.tell(line)?;
    let said = process.line()?;
    ensure!(said == "rc 0", "{line}: {said}");
    Ok(())
}

pub(super) fn write(target: &Cgroup, value: &str) -> String {
    format!("echo {value} > {}", target.freezer().display())
}

/// The guard, once everything that refuses is attached.
pub(super) fn armed() -> Result<Value> {
    let mut found = Value::Null;
    eventually("an automatic guard at enforce", || {
        found = guards()?.pop().unwrap_or_default();
        Ok(found["automatic"] == true && found["level"] == "enforce")
    })?;
    Ok(found)
}

fn first_write(hierarchy: Hierarchy) -> Result<()> {
    let (target, outside) = (Cgroup::new(hierarchy)?, Cgroup::new(hierarchy)?);
    let parent = Cgroup::new(hierarchy)?;
    let below = parent.child("target")?;
    let workload = Workload::start(&[&target], 1)?;
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, "true")?;
    ensure!(guards()?.is_empty(), "guarded before it wrote anything");
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    let guard = armed()?;
    ensure!(guard["state"] == "CHECKPOINTING", "{guard}");
    ensure!(guard["cgroups"][0] == target.text(), "{guard}");
    ensure!(guard["holder_pids"][0] == criu.pid().as_raw(), "{guard}");
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    outside.expect_allowed(hierarchy.file(), hierarchy.frozen())?;
    let pid = nix::unistd::Pid::from_raw(workload.pid);
    ensure!(
        kill(pid, Signal::SIGKILL) == Err(nix::errno::Errno::EBUSY),
        "killed"
    );
    outside.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    // Its children may as well, and what it writes next is guarded too.
    sh(
        &mut criu,
        &format!("(:; {})", write(&target, hierarchy.thawed())),
    )?;
    sh(&mut criu, &write(&below, hierarchy.frozen()))?;
    eventually("the second cgroup is guarded", || {
        Ok(guards()?[0]["cgroups"]
            .as_array()
            .is_some_and(|cgroups| cgroups.len() == 2))
    })?;
    parent.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    below.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    sh(&mut criu, &write(&below, hierarchy.thawed()))?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()?;
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    workload.expect_counting()?;
    for kind in ["begun", "freeze", "kill", "ended"] {
        eventually(
            &format!("the journal has {kind} of {}", target.text()),
            || {
                Ok(journal_fields()?.iter().any(|entry| {
                    entry["KIND"] == kind
                        && entry["CGROUP"]
                            .as_str()
                            .is_some_and(|all| all.contains(&target.text()))
                }))
            },
        )?;
    }
    Ok(())
}

/// Any user can mount with FUSE, and choose the name.
fn odd_mount(hierarchy: Hierarchy) -> Result<()> {
    let _mount = Mount::without_text()?;
    let old = main_pid()?;
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    expect_anew(old)?;
    first_write(hierarchy)
}

fn last_process(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut criu = FakeCriu::new()?.start()?;
    let fifo = scratch("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    sh(
        &mut criu,
        &format!("(read line < {}; exit) >/dev/null 2>&1 &", fifo.display()),
    )?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    armed()?;
    kill(criu.pid(), Signal::SIGKILL)?;
    eventually("the kill", || criu.has_ended())?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    ensure!(
        guards()?.len() == 1,
        "the guard has gone with the first process"
    );
    fs::write(&fifo, "\n")?;
    expect_idle()?;
    target.thaw()
}

/// CRIU is not disturbed, and it is told that it has no guard.
fn busy(hierarchy: Hierarchy) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let child = parent.child("child")?;
    // Where the guard below minds a freeze from above, CRIU would be refused as
    // anybody: so that protection is lifted here.
    let mut command = Held::command(&[&child]);
    let mut held = Held::start(command.args(["--allow", "freeze"]))?;
    held.wait_held()?;
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&parent, hierarchy.frozen()))?;
    let holder = criu.pid().to_string();
    eventually("it is logged", || {
        Ok(journal_fields()?.iter().any(|entry| {
            entry["KIND"] == "unguarded"
                && entry["PRIORITY"] == "3"
                && entry["CGROUP"] == parent.text()
                && entry["HOLDER_PID"].as_str() == Some(&holder)
        }))
    })?;
    sh(&mut criu, &write(&parent, hierarchy.thawed()))?;
    ensure!(guards()?.len() == 1, "{:?}", guards()?);
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    held.release()?.expect(0)?;
    expect_idle()
}

/// Somebody thaws the cgroup all the time, also in the very moment in which the checkpointer has
/// frozen it.
fn first_moment(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let _workload = Workload::start(&[&target], 1)?;
    let spin = format!(
        "echo ready; while :; do {}; done 2> /dev/null",
        write(&target, hierarchy.thawed())
    );
    let mut intruder = Process::spawn(Command::new("bash").args(["-c", &spin]))?;
    intruder.expect_line("ready")?;
    let mut criu = FakeCriu::new()?.start()?;
    eventually("it refuses before the first write", || Ok(refuses_writes()))?;
    ensure!(guards()?.is_empty(), "guarded before it wrote anything");
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    let guard = guards()?.pop().unwrap_or_default();
    ensure!(guard["level"] == "enforce", "{guard}");
    eventually("the intruder is refused", || {
        Ok(guards()?[0]["denials"]["freeze"].as_u64() > Some(0))
    })?;
    // One thaw can have been under way, since before the claim, and waits for the mutex meanwhile.
    match guards()?[0]["violations"]["freeze"].as_u64() {
        Some(0) => ensure!(target.state()? == "FROZEN", "it is {}", target.state()?),
        count => ensure!(count == Some(1), "{:?}", guards()?),
    }
    intruder.signal(Signal::SIGKILL)?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()
}

fn check(_: Hierarchy) -> Result<()> {
    expect_idle()?;
    let before = journal()?;
    // What it says of this kernel does not matter.
    run(Command::new("criu").args(["check"]))?;
    ensure!(guards()?.is_empty());
    expect_idle()?;
    let after = journal()?;
    ensure!(before == after, "it logs {after}");
    Ok(())
}

/// A point in the life of a guard.
#[derive(Clone, Copy, PartialEq)]
enum Point {
    Idle,
    Freezes,
    Frozen,
    Thaws,
    Thawed,
}

impl Point {
    const ALL: [Self; 5] = [
        Self::Idle,
        Self::Freezes,
        Self::Frozen,
        Self::Thaws,
        Self::Thawed,
    ];
}

fn killed(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut criu = FakeCriu::new()?.start()?;
    for point in Point::ALL {
        match point {
            Point::Idle | Point::Frozen | Point::Thawed => sh(&mut criu, "(:; :)")?,
            Point::Freezes => sh(&mut criu, &write(&target, hierarchy.frozen()))?,
            Point::Thaws => sh(&mut criu, &write(&target, hierarchy.thawed()))?,
        }
        // What refuses is attached a moment after the freeze.
        let is_armed = !matches!(point, Point::Idle | Point::Freezes);
        if is_armed {
            target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
        }
        let old = main_pid()?;
        kill(old, Signal::SIGKILL)?;
        if is_armed {
            target.expect_refused(hierarchy.file(), hierarchy.frozen())?;
            sh(&mut criu, "(:; :)")?;
        }
        expect_anew(old)?;
        if point != Point::Idle {
            let guard = armed()?;
            ensure!(guard["violations"]["freeze"] == 0, "{guard}");
        }
    }
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()?;
    workload.expect_counting()?;
    let last = last_guard()?;
    ensure!(last["cgroups"][0] == target.text(), "{last}");
    ensure!(last["denials"]["freeze"] == 6, "{last}");
    Ok(())
}

/// A write that was under way when the checkpointer froze.
fn violation(hierarchy: Hierarchy) -> Result<()> {
    // Its counters start anew.
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    let target = Cgroup::new(hierarchy)?;
    let mut command = Command::new("guest-tool");
    command
        .arg("stalled")
        .arg(target.freezer())
        .arg(hierarchy.thawed());
    let mut writer = Process::spawn(&mut command)?;
    writer.expect_line("ready")?;
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    armed()?;
    writer.tell("go")?;
    let pid = writer.pid();
    writer.wait(LONG)?.expect(0)?;
    criu.close_input();
    criu.wait(LONG)?.expect(0)?;
    expect_idle()?;
    let words = format!("pid {pid}, uid 0) thawed {}", target.text());
    eventually("it is logged as an error", || {
        Ok(journal_fields()?.iter().any(|entry| {
            entry["KIND"] == "violated"
                && entry["PRIORITY"] == "3"
                && entry["MESSAGE"]
                    .as_str()
                    .is_some_and(|message| message.contains(&words))
        }))
    })?;
    let metrics = tool(["varlink", SOCKET, "io.freezerguard.Metrics"])?;
    let counted = r#"freezer_guard_violations_total{kind=\"freeze\"} 1\n"#;
    ensure!(metrics.stdout.contains(counted), "{}", metrics.stdout);
    // Over a restart of the service.
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    let last = guard(["status", "--last"])?.expect(0)?;
    ensure!(
        last.stdout.contains("VIOLATED") && last.stdout.contains(&words),
        "{}",
        last.stdout
    );
    Ok(())
}
