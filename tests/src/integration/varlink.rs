//! The interface `io.freezerguard`, through a client that shares no code with it.

pub(super) mod users;

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    mounts::Mount,
    process::{Finished, Held, LONG, Process, guards, run},
    scratch_folder,
    service::{eventually, expect_idle, property, systemctl},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("introspection", introspection);
    list.add("varlinkctl", varlinkctl);
    list.add("begin_and_end", begin);
    list.add("begin_beside_a_hidden_mount", hidden_mount);
    list.add("holder_by_pidfd", pidfd);
    list.add("client_vanishes", vanishes);
    list.add("typed_errors", errors);
    list.add("stops_while_a_client_waits_for_a_freeze", stops);
    list.add("monitor", monitor);
    list.add("doctor_and_metrics", doctor);
    list.add("socket_activation", activation);
    users::list(list);
}

pub(super) const SOCKET: &str = "/run/freezer-guard/io.freezerguard";

/// The description of the interface, as the package installs it.
const DESCRIPTION: &str = "/usr/share/varlink/interfaces/io.freezerguard.varlink";

pub(super) fn command(method: &str, parameters: &Value) -> Command {
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

pub(super) fn expect_error(finished: &Finished, name: &str) -> Result<()> {
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
    // systemd is stricter than our client, in the file and in the reply.
    let name = json!({ "interface": "io.freezerguard" });
    let method = "org.varlink.service.GetInterfaceDescription";
    let described = reply(&run(&mut command(method, &name))?.expect(0)?)?;
    let text = described["description"].as_str().context("text")?;
    let replied = super::scratch("described.varlink");
    fs::write(&replied, text)?;
    for file in [Path::new(DESCRIPTION), &replied] {
        run(Command::new("varlinkctl").arg("validate-idl").arg(file))?.expect(0)?;
    }
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

/// The service has a `/tmp` of its own, which hides a second mount of the hierarchy. A restore that
/// is killed leaves one.
fn hidden_mount(hierarchy: Hierarchy) -> Result<()> {
    let (kind, options) = match hierarchy {
        Hierarchy::V1 => ("cgroup", Some("freezer")),
        Hierarchy::V2 => ("cgroup2", None),
    };
    let _hidden = Mount::new(kind, scratch_folder("hidden")?, options)?;
    systemctl(&["restart", "freezer-guard.service"])?.expect(0)?;
    begin(hierarchy)
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

/// A task that does not freeze must not keep the service from its end.
fn stops(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut stalled =
        Process::spawn(Command::new("guest-tool").args(["stall", "--cgroup", &target.text()]))?;
    stalled.expect_line("ready")?;
    let parameters = json!({
        "cgroups": [target.text()], "freeze": true, "freezeTimeoutSeconds": 500.0
    });
    let client = Process::spawn(&mut command("io.freezerguard.Begin", &parameters))?;
    eventually("it freezes", || Ok(target.state()? != "THAWED"))?;
    systemctl(&["stop", "freezer-guard"])?.expect(0)?;
    // systemd kills what does not stop.
    let result = property("freezer-guard", "Result")?;
    ensure!(result == "success", "{result}");
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    drop((client, stalled));
    systemctl(&["start", "freezer-guard"])?.expect(0)?;
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
        let found = &said["parameters"]["events"][0];
        ensure!(found["event"] == event, "not {event}: {line}");
        ensure!(found["cgroups"][0] == target.text(), "{line}");
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

fn activation(_: Hierarchy) -> Result<()> {
    systemctl(&["stop", "freezer-guard.service"])?.expect(0)?;
    call("List", &json!({}))?.expect(0)?;
    eventually("it is active", || {
        Ok(property("freezer-guard", "ActiveState")? == "active")
    })
}
