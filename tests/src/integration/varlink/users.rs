//! Who may do what over the socket, and how much of it: users, trusted and not, and
//! clients that mean no good.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    super::{
        List,
        cgroups::{Cgroup, Hierarchy},
        mounts::Mount,
        process::{Held, LONG, Process, as_user, guard, run, tool},
        scratch, scratch_folder,
        service::{eventually, expect_idle, main_pid, systemctl},
        storms::numbers,
    },
    SOCKET, call, command, expect_error, reply,
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("who_may_connect", who_may_connect);
    list.add("who_may", who_may);
    list.add("commands_ask_the_service", commands);
    list.add("run_by_the_service", run_by_service);
    list.add("a_file_of_a_silent_mount", silent_file);
    list.add("a_storm_beside_many_mounts", storm);
    list.add("a_thousand_bad_connections", garbage);
    list.add("nobody_has_too_much", limits);
    list.add("no_user_guards_too_deep", too_deep);
}

const DROP_IN: &str = "/etc/systemd/system/freezer-guard.socket.d/everybody.conf";

/// The number of the group whose members may do everything. The package has made it.
fn group() -> Result<String> {
    let groups = fs::read_to_string("/etc/group")?;
    let line = groups
        .lines()
        .find_map(|line| line.strip_prefix("freezer-guard:"));
    let id = line.and_then(|line| line.split(':').nth(1));
    Ok(id.context("there is no group freezer-guard")?.to_owned())
}

/// Lets everybody connect, as the documentation tells.
pub(in super::super) fn let_everybody_connect() -> Result<()> {
    if Path::new(DROP_IN).exists() {
        return Ok(());
    }
    fs::create_dir_all(Path::new(DROP_IN).parent().context("its folder")?)?;
    fs::write(DROP_IN, "[Socket]\nSocketMode=0666\n")?;
    restart_socket()
}

fn restart_socket() -> Result<()> {
    systemctl(&["daemon-reload"])?.expect(0)?;
    systemctl(&["stop", "freezer-guard.socket", "freezer-guard.service"])?.expect(0)?;
    systemctl(&["start", "freezer-guard.socket", "freezer-guard.service"])?.expect(0)?;
    Ok(())
}

/// As it is installed.
fn who_may_connect(_: Hierarchy) -> Result<()> {
    if Path::new(DROP_IN).exists() {
        fs::remove_file(DROP_IN)?;
        restart_socket()?;
    }
    let mut list = Command::new("/usr/bin/freezer-guard");
    list.arg("status");
    run(&mut as_user(1001, "", &list))?
        .expect(77)?
        .says("may not connect to /run/freezer-guard/io.freezerguard")?;
    run(&mut as_user(1001, &group()?, &list))?.expect(0)?;
    Ok(())
}

fn who_may(hierarchy: Hierarchy) -> Result<()> {
    let_everybody_connect()?;
    let group = group()?;
    let target = Cgroup::new(hierarchy)?;
    let list = command("io.freezerguard.List", &json!({}));
    expect_error(&run(&mut as_user(1001, "", &list))?, "PermissionDenied")?;
    run(&mut as_user(1000, &group, &list))?.expect(0)?;
    let mut begin = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true }),
    );
    expect_error(&run(&mut as_user(1001, "", &begin))?, "PermissionDenied")?;
    run(&mut as_user(1000, &group, &begin))?.expect(0)?;
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
    let fifo = scratch("fifo");
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

/// A client sends a descriptor of a file system that never answers.
fn silent_file(hierarchy: Hierarchy) -> Result<()> {
    let_everybody_connect()?;
    let target = Cgroup::new(hierarchy)?;
    let (silent, _fuse) = Mount::silent(scratch_folder("fuse")?)?;
    let mut begin = command(
        "io.freezerguard.Begin",
        &json!({ "cgroups": [target.text()], "freeze": true }),
    );
    begin.arg("--path").arg(&silent.0);
    expect_error(&run(&mut as_user(1001, "", &begin))?, "PermissionDenied")?;
    // With the right one beside it, it does not matter.
    std::os::unix::fs::chown(target.freezer(), Some(1001), None)?;
    begin.arg("--writable").arg(target.freezer());
    run(&mut as_user(1001, "", &begin))?.expect(0)?;
    expect_idle()
}

/// Each event names a cgroup, and its path is found through the mounts.
fn storm(hierarchy: Hierarchy) -> Result<()> {
    const MOUNTS: usize = 600;
    let dir = scratch_folder("mounts")?;
    let mut mounts = Vec::new();
    for number in 0..MOUNTS {
        let place = dir.join(number.to_string());
        fs::create_dir(&place)?;
        mounts.push(Mount::new("tmpfs", place, None)?);
    }
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let intruder = format!(
        "while :; do echo {} > {}; done",
        hierarchy.thawed(),
        target.freezer().display()
    );
    let intruder = Process::spawn(Command::new("sh").args(["-c", &intruder]))?;
    let before = main_pid()?;
    for _ in 0..10 {
        let mut call = Command::new("timeout");
        call.arg("10").arg("guest-tool");
        call.args(["varlink", SOCKET, "org.varlink.service.GetInfo"]);
        run(&mut call)?.expect(0).context("no answer in a storm")?;
        thread::sleep(Duration::from_millis(250));
    }
    intruder.signal(Signal::SIGKILL)?;
    held.release()?.expect(0)?;
    ensure!(main_pid()? == before, "the service was started anew");
    expect_idle()
}

/// `status`, `end` and `events` of one who may not use BPF himself.
fn commands(hierarchy: Hierarchy) -> Result<()> {
    let_everybody_connect()?;
    let group = group()?;
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    let guard_as = |uid, groups, arguments: &[&str]| {
        let mut command = Command::new("/usr/bin/freezer-guard");
        command.args(arguments);
        run(&mut as_user(uid, groups, &command))
    };
    let status = guard_as(1000, &group, &["status"])?.expect(0)?;
    ensure!(status.stdout.contains(&target.text()), "{}", status.stdout);
    let one = guard_as(1000, &group, &["status", &target.text(), "--json"])?.expect(0)?;
    ensure!(one.stdout.contains("CHECKPOINTING"), "{}", one.stdout);
    let events = guard_as(1000, &group, &["events"])?.expect(0)?;
    ensure!(events.stdout.contains("checkpointing"), "{}", events.stdout);
    guard_as(1001, "", &["status"])?.expect(77)?.says("group")?;
    guard_as(1001, "", &["end", &target.text(), "--force"])?.expect(77)?;
    guard_as(1000, &group, &["end", &target.text(), "--force"])?.expect(0)?;
    held.sh("true")?;
    held.release()?
        .expect(73)?
        .says("another process ended the guard")?;
    guard(["status", &target.text()])?.expect(0)?;
    expect_idle()
}

/// `run` of one who may not use BPF himself.
fn run_by_service(hierarchy: Hierarchy) -> Result<()> {
    let_everybody_connect()?;
    let group = group()?;
    let target = Cgroup::new(hierarchy)?;
    let run_as = |uid, groups, arguments: &[&str]| {
        let mut command = Command::new("/usr/bin/freezer-guard");
        command.args(["run", "--cgroup", &target.text()]);
        run(&mut as_user(uid, groups, command.args(arguments)))
    };
    let refused = run_as(1001, "", &["--freeze", "--", "echo", "ran"])?.expect(77)?;
    ensure!(!refused.stdout.contains("ran"));
    run_as(1000, &group, &["--", "true"])?
        .expect(75)?
        .says("not FROZEN")?;
    run_as(1000, &group, &["--level", "detect", "--", "true"])?.expect(64)?;
    run_as(1000, &group, &["--freeze", "--", "sh", "-c", "exit 7"])?
        .expect(7)?
        .says(&format!(
            "guarding {} (enforce; owner: uid 1000)",
            target.text()
        ))?
        .says("refused nothing")?;
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    // The service is told of any name.
    let odd = Cgroup::without_text(hierarchy)?;
    for arguments in [&["run", "--freeze", "--cgroup"][..], &["status"]] {
        let mut command = Command::new("/usr/bin/freezer-guard");
        command.args(arguments).arg(&odd.path);
        if arguments.len() > 1 {
            command.args(["--", "true"]);
        }
        run(&mut as_user(1000, &group, &command))?.expect(0)?;
    }
    // What was FROZEN is so at the end.
    target.freeze()?;
    let thaw = format!(
        "echo {} > {}",
        hierarchy.thawed(),
        target.freezer().display()
    );
    run_as(1000, &group, &["--", "true"])?.expect(0)?;
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
    let freeze = format!(
        "echo {} > {}",
        hierarchy.frozen(),
        target.freezer().display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &freeze]);
    let refused = run(&mut as_user(1001, "", &shell))?;
    ensure!(refused.code != 0, "another process of the user freezes");
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

fn garbage(hierarchy: Hierarchy) -> Result<()> {
    let_everybody_connect()?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let pid = main_pid()?;
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
    ensure!(main_pid()? == pid, "it has not survived");
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
    let_everybody_connect()?;
    /// A message, and what the socket holds of it.
    const MOST: u64 = 1 << 20;
    let tool = Command::new("guest-tool");
    for (uid, answered) in [(1001, 32), (0, 40)] {
        let mut tool = as_user(uid, "", &tool);
        tool.args(["varlink-limits", SOCKET, "40"]);
        let (connections, bytes) = numbers(&run(&mut tool)?.expect(0)?.stdout)?;
        ensure!(connections == answered, "{connections} for uid {uid}");
        ensure!(bytes < MOST, "{bytes} bytes of one message were taken");
    }
    // Many at once, each with a holder of its own.
    let mut targets: Vec<_> = (0..24)
        .map(|_| Cgroup::new(hierarchy))
        .collect::<Result<_>>()?;
    let hold = |target: &Cgroup| -> Result<Process> {
        std::os::unix::fs::chown(target.freezer(), Some(1001), None)?;
        let parameters = json!({ "cgroups": [target.text()], "freeze": true });
        let client = command("io.freezerguard.Begin", &parameters);
        let mut client = as_user(1001, "", &client);
        client.arg("--writable").arg(target.freezer()).arg("--hold");
        Process::spawn(&mut client)
    };
    let has_begun = |client: &mut Process| -> Result<bool> {
        let line = client.line()?;
        let is_error = line.contains("error");
        ensure!(!is_error || line.contains("io.freezerguard.Busy"), "{line}");
        Ok(!is_error)
    };
    let mut held: Vec<_> = targets.iter().map(hold).collect::<Result<_>>()?;
    let mut begun = 0;
    for client in &mut held {
        begun += usize::from(has_begun(client)?);
    }
    ensure!(begun <= 8, "{begun} guards of one user");
    // One of those that begin together may see another twice: begun, and being begun.
    loop {
        let target = Cgroup::new(hierarchy)?;
        let mut client = hold(&target)?;
        if !has_begun(&mut client)? {
            break;
        }
        begun += 1;
        held.push(client);
        targets.push(target);
    }
    ensure!(begun == 8, "{begun} guards of one user");
    for mut client in held {
        client.close_input();
        client.wait(LONG)?;
    }
    expect_idle()
}

/// Each cgroup above takes room in a map.
fn too_deep(hierarchy: Hierarchy) -> Result<()> {
    let_everybody_connect()?;
    let group = group()?;
    let top = Cgroup::new(hierarchy)?;
    let deep = "a/".repeat(63);
    let freezer = top.path.join(deep).join(hierarchy.file());
    let deepest = freezer.parent().context("its directory")?;
    fs::create_dir_all(deepest)?;
    std::os::unix::fs::chown(&freezer, Some(1001), None)?;
    let parameters = json!({ "cgroups": [deepest], "freeze": true });
    let mut begin = command("io.freezerguard.Begin", &parameters);
    let permitted = run(&mut as_user(1000, &group, &begin))?;
    begin.arg("--writable").arg(&freezer);
    let refused = run(&mut as_user(1001, "", &begin))?;
    for cgroup in deepest.ancestors().take(63) {
        eventually("rmdir", || Ok(fs::remove_dir(cgroup).is_ok()))?;
    }
    expect_error(&refused, "PermissionDenied")?;
    ensure!(refused.stdout.contains("at most 64"), "{}", refused.stdout);
    permitted.expect(0)?;
    expect_idle()
}
