//! The interface `io.freezerguard`, through a client that shares no code with it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    process::{Finished, Held, LONG, Process, guard, guards, run, tool},
    service::{eventually, expect_idle, systemctl},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("introspection", introspection);
    list.add("varlinkctl", varlinkctl);
    list.add("begin_and_end", begin);
    list.add("holder_by_pidfd", pidfd);
    list.add("client_vanishes", vanishes);
    list.add("typed_errors", errors);
    list.add("who_may", who_may);
    list.add("monitor", monitor);
    list.add("doctor_and_metrics", doctor);
    list.add("commands_ask_the_service", commands);
    list.add("run_by_the_service", run_by_service);
    list.add("socket_activation", activation);
    list.add("a_thousand_bad_connections", garbage);
    list.add("nobody_has_too_much", limits);
}

pub(super) const SOCKET: &str = "/run/freezer-guard/io.freezerguard";

fn command(method: &str, parameters: &Value) -> Command {
    let mut command = Command::new("guest-tool");
    command.args(["varlink", SOCKET, method, &parameters.to_string()]);
    command
}

fn call(method: &str, parameters: &Value) -> Result<Finished> {
    run(&mut command(
        &format!("io.freezerguard.{method}"),
        parameters,
    ))
}

/// The parameters of the last reply.
fn reply(finished: &Finished) -> Result<Value> {
    let line = finished.stdout.lines().rfind(|line| line.starts_with('{'));
    let reply: Value = serde_json::from_str(line.context("there is no reply")?)?;
    Ok(reply["parameters"].clone())
}

fn expect_error(finished: &Finished, name: &str) -> Result<()> {
    ensure!(finished.code != 0, "no error, but {}", finished.stdout);
    let error = format!("\"error\":\"io.freezerguard.{name}\"");
    ensure!(
        finished.stdout.contains(&error),
        "not {name}: {}",
        finished.stdout
    );
    Ok(())
}

fn introspection(_: Hierarchy) -> Result<()> {
    let info = run(&mut command("org.varlink.service.GetInfo", &json!({})))?.expect(0)?;
    ensure!(
        info.stdout.contains("\"io.freezerguard\""),
        "{}",
        info.stdout
    );
    let name = json!({ "interface": "io.freezerguard" });
    let described = run(&mut command(
        "org.varlink.service.GetInterfaceDescription",
        &name,
    ))?;
    let text = reply(&described.expect(0)?)?["description"].to_string();
    for words in [
        "method Begin(",
        "method End(",
        "method List(",
        "method Status(",
        "method Verify(",
        "method Monitor(",
        "method Doctor(",
        "error Busy",
        "error NotFrozen",
        "error Stray",
        "error Unsupported",
        "error PermissionDenied",
    ] {
        ensure!(text.contains(words), "no {words:?} in {text}");
    }
    Ok(())
}

/// systemd's own client, since 255.
fn varlinkctl(_: Hierarchy) -> Result<()> {
    let version = run(Command::new("systemctl").arg("--version"))?.stdout;
    let version: u32 = version
        .split_whitespace()
        .nth(1)
        .and_then(|version| version.parse().ok())
        .context("systemd has a version")?;
    let found = Path::new("/usr/bin/varlinkctl").exists();
    ensure!(
        found == (version >= 255),
        "systemd {version}, and varlinkctl: {found}"
    );
    if !found {
        // Its absence was checked; the client of ours does the same calls.
        return Ok(());
    }
    let varlinkctl = |arguments: &[&str]| run(Command::new("varlinkctl").args(arguments));
    let info = varlinkctl(&["info", SOCKET])?.expect(0)?;
    ensure!(info.stdout.contains("io.freezerguard"), "{}", info.stdout);
    let described = varlinkctl(&["introspect", SOCKET, "io.freezerguard"])?.expect(0)?;
    ensure!(described.stdout.contains("Begin"), "{}", described.stdout);
    let listed = varlinkctl(&["call", SOCKET, "io.freezerguard.List", "{}"])?.expect(0)?;
    ensure!(listed.stdout.contains("guards"), "{}", listed.stdout);
    Ok(())
}

fn begin(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut client = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true, "pid": workload.pid }),
    );
    client.args(["--hold", "--then"]);
    // What comes from the caller may write.
    client.arg(format!(
        "echo {} > {}",
        hierarchy.thawed(),
        target.freezer().display()
    ));
    let mut client = Process::spawn(&mut client)?;
    let begun: Value = serde_json::from_str(&client.line()?)?;
    let begun = &begun["parameters"]["guard"];
    ensure!(begun["state"] == "CHECKPOINTING", "{begun}");
    client.expect_line("then 0")?;
    target.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    let listed = &guards()?[0];
    ensure!(
        listed["id"] == begun["id"] && listed["automatic"] == false,
        "{listed}"
    );
    ensure!(
        listed["holder_pids"][0] == client.pid().as_raw(),
        "{listed}"
    );
    // Somebody else ends it by force only.
    let end = json!({ "cgroup": target.text() });
    expect_error(&call("End", &end)?, "PermissionDenied")?;
    let end = json!({ "cgroup": target.text(), "force": true });
    let ended = reply(&call("End", &end)?.expect(0)?)?;
    ensure!(ended["guard"]["denials"]["freeze"] == 1, "{ended}");
    client.tell("")?;
    client.wait(LONG)?.expect(0)?;
    target.thaw()?;
    // And its holder does so without: the cgroup is thawed.
    let mut client = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true }),
    );
    client.arg("--then").arg(format!(
        "guest-tool varlink {SOCKET} io.freezerguard.End '{}'",
        json!({ "cgroup": target.text() })
    ));
    let finished = run(&mut client)?.expect(0)?;
    ensure!(finished.stdout.contains("then 0"), "{}", finished.stdout);
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    workload.expect_counting()?;
    expect_idle()
}

/// One that has threads and children already.
fn pidfd(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let script = r#"coproc sub { bash -c 'while read -r line; do eval "$line"; done'; }
        echo up
        while read -r line; do echo "$line" >&"${sub[1]}"; done"#;
    let mut holder = Process::spawn(Command::new("bash").args(["-c", script]))?;
    holder.expect_line("up")?;
    let pid = holder.pid().as_raw();
    let mut client = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true, "holderFd": 0 }),
    );
    run(client.args(["--pidfd", &pid.to_string()]))?.expect(0)?;
    let listed = &guards()?[0];
    let pids = listed["holder_pids"].as_array().context("a list")?;
    ensure!(pids.contains(&json!(pid)) && pids.len() >= 2, "{listed}");
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    // A child that was there before may write.
    holder.tell(&format!(
        "echo {} > {}",
        hierarchy.thawed(),
        target.freezer().display()
    ))?;
    eventually("the child writes", || Ok(target.state()? == "THAWED"))?;
    holder.close_input();
    holder.wait(LONG)?;
    expect_idle()
}

fn vanishes(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut client = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true }),
    );
    let mut client = Process::spawn(client.arg("--hold"))?;
    client.line()?;
    ensure!(target.state()? == "FROZEN");
    client.signal(Signal::SIGKILL)?;
    drop(client);
    eventually("it is thawed", || Ok(target.state()? == "THAWED"))?;
    expect_idle()
}

fn errors(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let outside = Cgroup::new(hierarchy)?;
    let begin = |parameters: Value| call("Begin", &parameters);
    let cgroups = json!([target.text()]);
    expect_error(&begin(json!({ "cgroups": cgroups }))?, "NotFrozen")?;
    expect_error(&begin(json!({ "cgroups": [] }))?, "BadRequest")?;
    expect_error(&begin(json!({ "cgroups": ["/nowhere"] }))?, "BadRequest")?;
    expect_error(
        &begin(json!({ "cgroups": cgroups, "require": "most" }))?,
        "BadRequest",
    )?;
    expect_error(
        &begin(json!({ "cgroups": cgroups, "holderFd": 3 }))?,
        "BadRequest",
    )?;
    expect_error(
        &call("End", &json!({ "cgroup": target.text() }))?,
        "NotGuarded",
    )?;
    let workload = Workload::start(&[&outside], 0)?;
    let elsewhere = json!({ "cgroups": cgroups, "freeze": true, "pid": workload.pid });
    expect_error(&begin(elsewhere)?, "Stray")?;
    let verify = json!({ "cgroups": cgroups, "pid": workload.pid });
    expect_error(&call("Verify", &verify)?, "Stray")?;
    let held = Held::new(&[&target])?;
    expect_error(
        &begin(json!({ "cgroups": cgroups, "freeze": true }))?,
        "Busy",
    )?;
    held.release()?.expect(0)?;
    ensure!(target.state()? == "THAWED");
    workload.expect_counting()?;
    expect_idle()
}

/// Runs a client as a user who is not root.
fn as_user(uid: u32, groups: &str, client: &Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string()]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.args(["--groups", groups]),
    };
    command.arg(client.get_program()).args(client.get_args());
    command
}

fn who_may(hierarchy: Hierarchy) -> Result<()> {
    const GROUP: &str = "freezer-guard:x:777:\n";
    let groups = fs::read_to_string("/etc/group")?;
    if !groups.contains(GROUP) {
        fs::write("/etc/group", groups + GROUP)?;
    }
    let target = Cgroup::new(hierarchy)?;
    let list = command("io.freezerguard.List", &json!({}));
    expect_error(&run(&mut as_user(1001, "", &list))?, "PermissionDenied")?;
    run(&mut as_user(1000, "777", &list))?.expect(0)?;
    let mut begin = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true }),
    );
    expect_error(&run(&mut as_user(1001, "", &begin))?, "PermissionDenied")?;
    run(&mut as_user(1000, "777", &begin))?.expect(0)?;
    expect_idle()?;
    // Who may not write the file cannot open it so; a descriptor for reading is
    // no proof, nor is one of another file.
    begin.arg("--readable").arg(target.freezer());
    expect_error(&run(&mut as_user(1001, "", &begin))?, "PermissionDenied")?;
    let other = Cgroup::new(hierarchy)?;
    let mut begin = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true }),
    );
    begin.arg("--writable").arg(other.freezer());
    std::os::unix::fs::chown(other.freezer(), Some(1001), None)?;
    expect_error(&run(&mut as_user(1001, "", &begin))?, "PermissionDenied")?;
    std::os::unix::fs::chown(target.freezer(), Some(1001), None)?;
    begin.arg("--writable").arg(target.freezer());
    run(&mut as_user(1001, "", &begin))?.expect(0)?;
    expect_idle()?;
    // A path that he names holds up nobody.
    let fifo = super::scratch("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::all())?;
    let begin = command("io.freezerguard.Begin", &json!({ "cgroups": [fifo] }));
    expect_error(&run(&mut as_user(1001, "", &begin))?, "PermissionDenied")?;
    // The holder has to be a process of his.
    let mut begin = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true, "holderFd": 1 }),
    );
    begin
        .arg("--writable")
        .arg(target.freezer())
        .args(["--pidfd", "1"]);
    expect_error(&run(&mut as_user(1001, "", &begin))?, "PermissionDenied")?;
    ensure!(target.state()? == "THAWED");
    expect_idle()
}

fn monitor(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut follower = command("io.freezerguard.Monitor", &json!({}));
    let mut follower = Process::spawn(follower.arg("--more"))?;
    follower.line()?;
    let held = Held::new(&[&target])?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    for event in ["begun", "checkpointing", "denial", "ended"] {
        let line = follower.line()?;
        let said: Value = serde_json::from_str(&line)?;
        ensure!(said["continues"] == true, "{line}");
        let happening = &said["parameters"]["happenings"][0];
        ensure!(happening["event"] == event, "not {event}: {line}");
        ensure!(happening["cgroups"][0] == target.text(), "{line}");
    }
    Ok(())
}

fn doctor(_: Hierarchy) -> Result<()> {
    let found = reply(&call("Doctor", &json!({}))?.expect(0)?)?;
    ensure!(found["verdict"] != "unusable", "{found}");
    let guards = found["checks"]
        .as_array()
        .context("a list")?
        .iter()
        .filter(|check| {
            check["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("guard on"))
        });
    let mut count = 0;
    for check in guards {
        ensure!(check["verdict"] == "good", "{check}");
        count += 1;
    }
    ensure!(count > 0, "no guard was tried: {found}");
    let metrics = reply(&call("Metrics", &json!({}))?.expect(0)?)?;
    let text = metrics["text"].as_str().context("text")?;
    ensure!(text.contains("freezer_guard_guards_begun_total"), "{text}");
    expect_idle()
}

/// `status`, `end` and `events` of one who may not use BPF himself.
fn commands(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    let guard_as = |uid, groups, arguments: &[&str]| {
        let mut command = Command::new("/usr/bin/freezer-guard");
        command.args(arguments);
        run(&mut as_user(uid, groups, &command))
    };
    let status = guard_as(1000, "777", &["status"])?.expect(0)?;
    ensure!(status.stdout.contains(&target.text()), "{}", status.stdout);
    let one = guard_as(1000, "777", &["status", &target.text(), "--json"])?.expect(0)?;
    ensure!(one.stdout.contains("CHECKPOINTING"), "{}", one.stdout);
    let events = guard_as(1000, "777", &["events"])?.expect(0)?;
    ensure!(events.stdout.contains("checkpointing"), "{}", events.stdout);
    guard_as(1001, "", &["status"])?.expect(77)?.says("group")?;
    guard_as(1001, "", &["end", &target.text(), "--force"])?.expect(77)?;
    guard_as(1000, "777", &["end", &target.text(), "--force"])?.expect(0)?;
    held.sh("true")?;
    held.release()?.expect(73)?.says("ended by somebody")?;
    guard(["status", &target.text()])?.expect(0)?;
    expect_idle()
}

/// `run` of one who may not use BPF himself.
fn run_by_service(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let run_as = |uid, groups, arguments: &[&str]| {
        let mut command = Command::new("/usr/bin/freezer-guard");
        command.args(["run", "--cgroup", &target.text()]);
        run(&mut as_user(uid, groups, command.args(arguments)))
    };
    let refused = run_as(1001, "", &["--freeze", "--", "echo", "ran"])?.expect(77)?;
    ensure!(!refused.stdout.contains("ran"));
    run_as(1000, "777", &["--", "true"])?
        .expect(75)?
        .says("not FROZEN")?;
    run_as(1000, "777", &["--level", "detect", "--", "true"])?.expect(64)?;
    run_as(1000, "777", &["--freeze", "--", "sh", "-c", "exit 7"])?
        .expect(7)?
        .says(&format!("guarding {} (enforce)", target.text()))?
        .says("refused nothing")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    // What was FROZEN is so at the end.
    target.freeze()?;
    let thaw = format!(
        "echo {} > {}",
        hierarchy.thawed(),
        target.freezer().display()
    );
    run_as(1000, "777", &["--", "true"])?.expect(0)?;
    ensure!(target.state()? == "FROZEN", "left {}", target.state()?);
    target.thaw()?;
    // Who may freeze a cgroup may guard it.
    std::os::unix::fs::chown(target.freezer(), Some(1001), None)?;
    let mut command = Command::new("/usr/bin/freezer-guard");
    command.args(["run", "--freeze", "--cgroup", &target.text(), "--"]);
    let script = format!("echo held; {thaw}; read -r line; exit 0");
    command.args(["bash", "-c", &script]);
    let mut held = Process::spawn(&mut as_user(1001, "", &command))?;
    held.expect_line("held")?;
    // The service may start anew meanwhile.
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    eventually("the holder thaws", || Ok(target.state()? == "THAWED"))?;
    target.expect_refused(hierarchy.file(), hierarchy.frozen())?;
    held.tell("")?;
    held.wait(LONG)?.expect(0)?.says("refused 1 attempt")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    // A cgroup may go with its tasks, as a unit's does.
    let parent = Cgroup::new(hierarchy)?;
    let gone = parent.child("gone")?;
    for path in [parent.path.clone(), gone.path.clone(), gone.freezer()] {
        std::os::unix::fs::chown(path, Some(1001), None)?;
    }
    let mut command = Command::new("/usr/bin/freezer-guard");
    command.args(["run", "--freeze", "--cgroup", &gone.text(), "--"]);
    // Longer than it takes to look once.
    command.args(["bash", "-c", &format!("rmdir {} && sleep 3", gone.text())]);
    run(&mut as_user(1001, "", &command))?
        .expect(0)?
        .says("refused nothing")?;
    expect_idle()
}

fn activation(_: Hierarchy) -> Result<()> {
    systemctl(&["stop", "freezer-guard.service"])?.expect(0)?;
    call("List", &json!({}))?.expect(0)?;
    eventually("it is active", || {
        Ok(super::service::property("freezer-guard", "ActiveState")? == "active")
    })
}

fn garbage(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let pid = super::service::main_pid()?;
    tool(["garbage", SOCKET, "1000"])?.expect(0)?;
    let bad = Command::new("guest-tool");
    let mut bad = as_user(1001, "", &bad);
    run(bad.args(["garbage", SOCKET, "200"]))?.expect(0)?;
    let listed = reply(&call("List", &json!({}))?.expect(0)?)?;
    ensure!(
        listed["guards"]
            .as_array()
            .is_some_and(|all| all.len() == 1),
        "{listed}"
    );
    ensure!(super::service::main_pid()? == pid, "it has not survived");
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|text| text.trim().strip_suffix(" kB"));
    let resident: u64 = resident.context("its memory")?.trim().parse()?;
    ensure!(resident < 100 << 10, "it takes {resident} kB");
    let name = tool(["varlink", SOCKET, "org.varlink.service.GetInfo"])?.expect(0)?;
    ensure!(name.stdout.contains("freezer-guard"));
    expect_idle()
}

fn limits(hierarchy: Hierarchy) -> Result<()> {
    /// A message, and what the socket holds of it.
    const MOST: u64 = 1 << 20;
    let tool = Command::new("guest-tool");
    for (uid, answered) in [(1001, 32), (0, 40)] {
        let mut tool = as_user(uid, "", &tool);
        tool.args(["varlink-limits", SOCKET, "40"]);
        let (connections, bytes) = super::storms::numbers(&run(&mut tool)?.expect(0)?.stdout)?;
        ensure!(connections == answered, "{connections} for uid {uid}");
        ensure!(bytes < MOST, "{bytes} bytes of one message were taken");
    }
    // As many guards as that, each with a holder of its own.
    let targets: Vec<_> = (0..9)
        .map(|_| Cgroup::new(hierarchy))
        .collect::<Result<_>>()?;
    let mut held = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        std::os::unix::fs::chown(target.freezer(), Some(1001), None)?;
        let parameters = json!({ "cgroups": [target.text()], "freeze": true });
        let client = command("io.freezerguard.Begin", &parameters);
        let mut client = as_user(1001, "", &client);
        client.arg("--writable").arg(target.freezer()).arg("--hold");
        let mut client = Process::spawn(&mut client)?;
        let line = client.line()?;
        ensure!(line.contains("error") == (number == 8), "{number}: {line}");
        held.push(client);
    }
    for mut client in held {
        client.close_input();
        client.wait(LONG)?;
    }
    expect_idle()
}
