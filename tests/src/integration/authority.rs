//! Nobody gains power through a guard: root can do to a user's processes what it can do
//! without freezer-guard, and everybody can kill a holder whom he could kill without it.

use std::{fs, os::unix::fs::chown, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{
    List,
    automatic::{FakeCriu, armed, sh, write},
    cgroups::{Cgroup, Hierarchy, Workload},
    configured::Configured,
    process::{Held, LONG, Process, as_user, guard, guards, last_guard, run, tool},
    service::{eventually, expect_idle, journal, main_pid},
    varlink::{self, SOCKET},
};

/// The uid of the user.
const USER: u32 = 1000;

pub(super) fn list(list: &mut List<'_>) {
    list.add("criu_of_a_user_has_no_guard", no_guard);
    list.add("guard_of_a_user_yields_to_root", yields);
    list.add("guard_of_a_client_yields_to_root", client);
    if list.is_hybrid() {
        list.add(
            "guard_of_a_client_yields_in_the_other_hierarchy",
            client_in_the_other,
        );
    }
    list.add("guard_in_a_user_namespace_yields_to_its_owner", namespaces);
    list.add("guard_of_a_user_ends_in_time", overdue);
    list.add("a_holder_in_its_own_target_can_be_killed", own_target);
    list.add("begin_refuses_init_and_the_service", depended_on);
}

/// A cgroup whose freezer the user may write.
pub(super) fn delegated(hierarchy: Hierarchy) -> Result<(Cgroup, Cgroup)> {
    let parent = Cgroup::new(hierarchy)?;
    let target = parent.child("target")?;
    chown(target.freezer(), Some(USER), None)?;
    Ok((parent, target))
}

/// A file that root owns makes no checkpointer: with `LD_PRELOAD` a user executes whatever
/// he likes in it.
fn no_guard(hierarchy: Hierarchy) -> Result<()> {
    let (parent, target) = delegated(hierarchy)?;
    let fake = FakeCriu::new()?;
    let mut powerless = Command::new("setpriv");
    powerless.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    powerless.arg(fake.command().get_program());
    powerless.args(fake.command().get_args());
    // Root owns the parent.
    for (mut command, own) in [
        (as_user(USER, "", &fake.command()), &target),
        (powerless, &parent),
    ] {
        let mut criu = Process::spawn(&mut command)?;
        sh(&mut criu, &write(own, hierarchy.frozen()))?;
        ensure!(guards()?.is_empty(), "{:?}", guards()?);
        own.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
        for value in [hierarchy.frozen(), hierarchy.thawed()] {
            parent.expect_allowed(hierarchy.file(), value)?;
        }
        kill(criu.pid(), Signal::SIGKILL)?;
        criu.wait(LONG)?;
    }
    expect_idle()
}

fn yields(hierarchy: Hierarchy) -> Result<()> {
    let _configured = Configured::new("[automatic]\nusers = true\n")?;
    let (parent, target) = delegated(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let fake = FakeCriu::new()?;
    let mut criu = Process::spawn(&mut as_user(USER, "", &fake.command()))?;
    // The service takes a moment to hear of its configuration.
    eventually("the user's checkpointer is a candidate", || {
        criu = Process::spawn(&mut as_user(USER, "", &fake.command()))?;
        sh(&mut criu, &write(&target, hierarchy.frozen()))?;
        let is_guarded = !guards()?.is_empty();
        if !is_guarded {
            target.thaw()?;
        }
        Ok(is_guarded)
    })?;
    let begun = armed()?;
    ensure!(begun["owner_uid"] == USER, "{begun}");
    let shown = guard(["status"])?.expect(0)?;
    ensure!(shown.stdout.contains("owner: uid 1000"), "{}", shown.stdout);
    // His equals are refused.
    let mut equal = Command::new("sh");
    equal.args(["-c", &write(&target, hierarchy.thawed())]);
    let refused = run(&mut as_user(USER, "", &equal))?;
    ensure!(refused.code != 0, "a process of the same user has thawed");
    // Root is not.
    for value in [hierarchy.frozen(), hierarchy.thawed()] {
        parent.expect_allowed(hierarchy.file(), value)?;
    }
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    let elsewhere = Cgroup::new(hierarchy)?;
    elsewhere.expect_allowed("cgroup.procs", &workload.pid.to_string())?;
    target.expect_allowed("cgroup.procs", &workload.pid.to_string())?;
    let memory = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{}/mem", workload.pid));
    memory.context("trace a task of the target")?;
    kill(Pid::from_raw(workload.pid), Signal::SIGKILL).context("kill a task of the target")?;
    kill(criu.pid(), Signal::SIGKILL).context("kill the holder")?;
    expect_idle()?;
    let last = last_guard()?;
    ensure!(last["denials"]["freeze"] == 1, "{last}");
    for kind in ["freeze", "kill", "migrate", "ptrace"] {
        let count = last["violations"][kind].as_u64();
        ensure!(count.is_some_and(|count| count > 0), "{kind}: {last}");
    }
    Ok(())
}

/// A client of the socket that begins a guard of the target.
pub(super) fn begin(target: &Cgroup) -> Result<Command> {
    varlink::users::let_everybody_connect()?;
    let parameters = json!({ "cgroups": [target.text()], "freeze": true });
    let begin = varlink::command("io.freezerguard.Begin", &parameters);
    let mut begin = as_user(USER, "", &begin);
    begin.arg("--writable").arg(target.freezer());
    Ok(begin)
}

/// One that holds it.
fn hold(target: &Cgroup) -> Result<Process> {
    spawn_holder(begin(target)?.arg("--hold"))
}

fn spawn_holder(begin: &mut Command) -> Result<Process> {
    let mut client = Process::spawn(begin)?;
    let line = client.line()?;
    ensure!(line.contains("CHECKPOINTING"), "{line}");
    Ok(client)
}

fn client(hierarchy: Hierarchy) -> Result<()> {
    let (parent, target) = delegated(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut client = hold(&target)?;
    let held = guards()?.pop().context("there is no guard")?;
    ensure!(held["owner_uid"] == USER, "{held}");
    for value in [hierarchy.frozen(), hierarchy.thawed()] {
        parent.expect_allowed(hierarchy.file(), value)?;
    }
    target.expect_allowed(hierarchy.file(), hierarchy.thawed())?;
    kill(Pid::from_raw(workload.pid), Signal::SIGKILL).context("kill a task of the target")?;
    client.close_input();
    client.wait(LONG)?;
    expect_idle()?;
    let last = last_guard()?;
    ensure!(last["violations"]["freeze"] != 0, "{last}");
    // And he cannot keep root from a checkpoint.
    let mut client = hold(&target)?;
    let held = Held::new(&[&target])?;
    let guard = guards()?.pop().context("there is no guard")?;
    ensure!(guard["owner_uid"].is_null(), "{guard}");
    client.close_input();
    client.wait(LONG)?;
    held.release()?.expect(0)?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_idle()
}

/// A user keeps root from a checkpoint no more where the tasks are in two hierarchies.
fn client_in_the_other(hierarchy: Hierarchy) -> Result<()> {
    let (_parent, shared) = delegated(hierarchy.other())?;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target, &shared], 1)?;
    let mut client = hold(&shared)?;
    ensure!(
        shared.state()? == "FROZEN",
        "{} is not FROZEN",
        shared.text()
    );
    let mut held = Held::new(&[&target])?;
    let guard = guards()?.pop().context("there is no guard")?;
    ensure!(guard["owner_uid"].is_null(), "{guard}");
    ensure!(shared.state()? == "THAWED", "left {}", shared.state()?);
    shared.expect_refused(shared.hierarchy.file(), shared.hierarchy.frozen())?;
    held.thaw(&target)?;
    workload.expect_counting()?;
    client.close_input();
    client.wait(LONG)?;
    held.release()?.expect(0)?;
    expect_idle()
}

/// The holder is root of a user namespace that the user has made.
fn namespaces(hierarchy: Hierarchy) -> Result<()> {
    let (_parent, target) = delegated(hierarchy)?;
    let inside = |command: &Command| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user"]);
        unshare.arg(command.get_program()).args(command.get_args());
        as_user(USER, "", &unshare)
    };
    varlink::users::let_everybody_connect()?;
    let parameters = json!({ "cgroups": [target.text()], "freeze": true });
    let mut begin = varlink::command("io.freezerguard.Begin", &parameters);
    begin.arg("--writable").arg(target.freezer()).arg("--hold");
    let mut client = spawn_holder(&mut inside(&begin))?;
    let held = guards()?.pop().context("there is no guard")?;
    ensure!(held["owner_uid"] == USER, "{held}");
    let mut thaw = Command::new("sh");
    thaw.args(["-c", &write(&target, hierarchy.thawed())]);
    // Root of another namespace of his is his equal there.
    let refused = run(&mut inside(&thaw))?;
    ensure!(refused.code != 0, "root of another namespace has thawed");
    ensure!(target.state()? == "FROZEN", "it is {}", target.state()?);
    // He himself owns the namespace, so he has all capabilities in it.
    run(&mut as_user(USER, "", &thaw))?.expect(0)?;
    client.close_input();
    client.wait(LONG)?;
    expect_idle()?;
    let last = last_guard()?;
    ensure!(last["denials"]["freeze"] == 1, "{last}");
    ensure!(last["violations"]["freeze"] != 0, "{last}");
    target.thaw()
}

fn overdue(hierarchy: Hierarchy) -> Result<()> {
    let configured = Configured::new("[users]\nlongest_hold = \"2s\"\n")?;
    let thawed = || -> Result<u64> {
        let metrics = tool(["varlink", SOCKET, "io.freezerguard.Metrics"])?.stdout;
        let name = r#"freezer_guard_thawed_total{reason=\"longest_hold\"} "#;
        let (_, count) = metrics.split_once(name).context("there is none")?;
        let count = count.split("\\n").next().context("a line")?;
        Ok(count.parse()?)
    };
    let before = thawed()?;
    let (_parent, target) = delegated(hierarchy)?;
    let client = hold(&target)?;
    expect_idle()?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    ensure!(
        journal()?.contains("and the holder has passed `users.longest_hold`"),
        "{}",
        journal()?
    );
    eventually("the thaw is counted", || Ok(thawed()? == before + 1))?;
    drop((client, configured));
    Ok(())
}

fn own_target(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut criu = Process::spawn(&mut FakeCriu::new()?.command())?;
    sh(&mut criu, "true")?;
    target.write("cgroup.procs", &criu.pid().to_string())?;
    // It freezes itself.
    criu.tell(&write(&target, hierarchy.frozen()))?;
    armed()?;
    let killed = kill(criu.pid(), Signal::SIGKILL);
    ensure!(killed == Ok(()), "{killed:?}");
    if hierarchy == Hierarchy::V1 {
        // There a frozen task ends when it is thawed.
        guard(["end", &target.text(), "--force"])?.expect(0)?;
        target.thaw()?;
    }
    criu.wait(LONG)?;
    expect_idle()?;
    target.thaw()
}

/// A frozen service thaws nothing, and everything on the host descends from init.
fn depended_on(hierarchy: Hierarchy) -> Result<()> {
    let name = "io.freezerguard.Begin";
    let target = Cgroup::new(hierarchy)?;
    let mut of_init = varlink::command(
        name,
        &json!({ "cgroups": [target.text()], "freeze": true, "holderFd": 0 }),
    );
    of_init.args(["--pidfd", "1"]);
    varlink::expect_error(&run(&mut of_init)?, "BadRequest")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    if hierarchy == Hierarchy::V2 {
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", main_pid()?))?;
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        let path = hierarchy.root().join(
            own.context("the service is in no cgroup")?
                .trim_start_matches('/'),
        );
        let mut begin = varlink::command(name, &json!({ "cgroups": [path], "freeze": true }));
        varlink::expect_error(&run(&mut begin)?, "BadRequest")?;
    }
    expect_idle()
}
