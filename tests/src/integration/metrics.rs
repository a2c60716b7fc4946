//! The metrics over HTTP: their readers, and that no client takes anything from guards or from the
//! service's sandbox.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy},
    misuse::lock,
    process::{Finished, Held, LONG, Process, as_user, run, tool},
    service::{
        CONFIG, confined, eventually, expect_anew, expect_idle, main_pid, property, systemctl,
    },
    varlink::command,
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("off_by_default", off);
    list.add("over_http", over_http);
    list.add("after_a_kill_of_the_service", after_a_kill);
    list.add("a_thousand_silent_connections", silent);
    list.add("a_storm_of_scrapes", storm);
    list.add("each_guard_counts_once", once);
    list.add("stop_with_the_service", stop);
    list.add(
        "no_scrape_starts_a_service_again_and_again",
        wrong_configuration,
    );
    list.add("without_systemd", without_systemd);
}

const UNIT: &str = "freezer-guard-metrics.socket";
const DROP_IN: &str = "/etc/systemd/system/freezer-guard-metrics.socket.d";
const UNIX: &str = "unix:/run/freezer-guard/metrics";
const TCP: &str = "127.0.0.1:9948";

/// The sockets are there, as the documentation tells to make them, until this is dropped.
struct Enabled;

impl Enabled {
    fn new() -> Result<Self> {
        fs::create_dir_all(DROP_IN)?;
        fs::write(
            format!("{DROP_IN}/address.conf"),
            format!("[Socket]\nListenStream={TCP}\n"),
        )?;
        let enabled = Self;
        systemctl(&["daemon-reload"])?.expect(0)?;
        systemctl(&["enable", UNIT])?.expect(0)?;
        systemctl(&["restart", "freezer-guard.service"])?.expect(0)?;
        Ok(enabled)
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(DROP_IN);
        let _ = systemctl(&["disable", UNIT]);
        let _ = systemctl(&["stop", UNIT]);
        let _ = systemctl(&["daemon-reload"]);
        let _ = systemctl(&["restart", "freezer-guard.service"]);
    }
}

/// The status and the text of a reply.
fn scrape(arguments: &[&str]) -> Result<(String, String)> {
    let reply = tool([&["http"], arguments].concat())?.expect(0)?.stdout;
    let (head, text) = reply.split_once("\n\n").context("it has no head")?;
    let status = head.split(' ').nth(1).context("it has no status")?;
    Ok((status.to_owned(), text.to_owned()))
}

fn metrics(address: &str) -> Result<String> {
    let (status, text) = scrape(&[address])?;
    ensure!(status == "200", "{status}: {text}");
    Ok(text)
}

/// Whether a scrape succeeds now.
fn answers(address: &str) -> Result<bool> {
    let Finished { code, stdout, .. } = tool(["http", address])?;
    Ok(code == 0 && stdout.starts_with("HTTP/1.1 200 "))
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|found| found == line)
}

/// The links of a process to its namespace of networks.
fn network(pid: &str) -> Result<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net"))?;
    Ok(link.display().to_string())
}

fn off(_: Hierarchy) -> Result<()> {
    ensure!(
        property(UNIT, "LoadState")? == "loaded",
        "it is not installed"
    );
    ensure!(property(UNIT, "UnitFileState")? == "disabled");
    ensure!(property(UNIT, "ActiveState")? == "inactive");
    ensure!(!Path::new("/run/freezer-guard/metrics").exists());
    let listening = fs::read_to_string("/proc/net/tcp")?;
    // 9948.
    ensure!(!listening.contains(":26DC "), "{listening}");
    Ok(())
}

fn over_http(hierarchy: Hierarchy) -> Result<()> {
    let _enabled = Enabled::new()?;
    for address in [UNIX, TCP] {
        let text = metrics(address)?;
        for line in [
            "freezer_guard_guards_active 0",
            "freezer_guard_denied_total{kind=\"freeze\"} 0",
            "freezer_guard_level{kind=\"freeze\"} 3",
            "freezer_guard_level{kind=\"migrate\"} 3",
            "# TYPE freezer_guard_arm_seconds histogram",
            "# TYPE freezer_guard_denied_total counter",
        ] {
            ensure!(has(&text, line), "no {line}: {text}");
        }
        ensure!(!text.contains("# EOF"), "{text}");
        let (_, open) = scrape(&[address, "--accept", "application/openmetrics-text"])?;
        ensure!(open.ends_with("\n# EOF\n"), "{open}");
        ensure!(has(&open, "# TYPE freezer_guard_denied counter"), "{open}");
        for (arguments, expected) in [
            (&[address, "/"][..], "404"),
            (&[address, "--method", "POST"], "405"),
            (&[address, "--method", "HEAD"], "200"),
        ] {
            let (status, text) = scrape(arguments)?;
            ensure!(status == expected, "{status}, not {expected}: {text}");
        }
        let mut client = Command::new("guest-tool");
        client.args(["http", address]);
        run(&mut as_user(1001, "", &client))?.expect(0)?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let text = metrics(TCP)?;
    ensure!(
        text.contains(&format!("kernel=\"{}\"}} 1\n", release.trim())),
        "{text}"
    );
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    let counts = |active: u8, ended: u8| -> Result<bool> {
        let text = metrics(TCP)?;
        Ok(has(&text, &format!("freezer_guard_guards_active {active}"))
            && has(&text, "freezer_guard_denied_total{kind=\"freeze\"} 1")
            && has(&text, &format!("freezer_guard_hold_seconds_count {ended}"))
            && !text.contains(&target.text()))
    };
    eventually("the guard counts", || counts(1, 0))?;
    held.release()?.expect(0)?;
    eventually("its end counts", || counts(0, 1))?;
    // The sandbox is the same, and knows no network.
    ensure!(property("freezer-guard", "PrivateNetwork")? == "yes");
    let families = property("freezer-guard", "RestrictAddressFamilies")?;
    ensure!(families == "AF_UNIX", "{families}");
    let pid = main_pid()?.to_string();
    ensure!(
        network(&pid)? != network("self")?,
        "it is in the host's network"
    );
    confined(hierarchy)?;
    expect_idle()
}

fn after_a_kill(hierarchy: Hierarchy) -> Result<()> {
    let _enabled = Enabled::new()?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    for _ in 0..4 {
        let old = main_pid()?;
        let scraping = Process::spawn(Command::new("guest-tool").args(["http", TCP]))?;
        kill(old, Signal::SIGKILL)?;
        for address in [UNIX, TCP] {
            eventually("it is answered again", || answers(address))?;
        }
        expect_anew(old)?;
        // Whether it came too early or too late: it has an end.
        scraping.wait(LONG)?;
    }
    ensure!(property(UNIT, "ActiveState")? == "active");
    let text = metrics(TCP)?;
    ensure!(has(&text, "freezer_guard_guards_active 1"), "{text}");
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    expect_idle()
}

fn silent(hierarchy: Hierarchy) -> Result<()> {
    let _enabled = Enabled::new()?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let pid = main_pid()?;
    for address in [UNIX, TCP] {
        let mut client = Command::new("guest-tool");
        let mut clients = Process::spawn(client.args(["silent", address, "1000"]))?;
        clients.expect_line("ready")?;
        for _ in 0..5 {
            metrics(address)?;
        }
        let info = command("org.varlink.service.GetInfo", &json!({}));
        let mut timed = Command::new("timeout");
        timed
            .arg("10")
            .arg(info.get_program())
            .args(info.get_args());
        run(&mut timed)?
            .expect(0)
            .context("no answer beside silent clients")?;
        target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        ensure!(descriptors < 400, "{descriptors} descriptors");
        clients.tell("")?;
        clients.wait(LONG)?.expect(0)?;
    }
    ensure!(main_pid()? == pid, "it has not survived");
    held.release()?.expect(0)?.says("refused 2 attempts")?;
    expect_idle()
}

fn storm(hierarchy: Hierarchy) -> Result<()> {
    let _enabled = Enabled::new()?;
    let pid = main_pid()?;
    let mut client = Command::new("guest-tool");
    let mut clients = Process::spawn(client.args(["scrape-storm", TCP]))?;
    clients.expect_line("ready")?;
    for _ in 0..3 {
        let target = Cgroup::new(hierarchy)?;
        let held = Held::new(&[&target])?;
        target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
        held.release()?.expect(0)?;
    }
    // Nor does it keep the programs that refuse attached.
    expect_idle()?;
    clients.tell("")?;
    clients.wait(LONG)?.expect(0)?;
    ensure!(main_pid()? == pid, "it has not survived");
    eventually("all guards count", || {
        let text = metrics(TCP)?;
        Ok(has(&text, "freezer_guard_denied_total{kind=\"freeze\"} 3")
            && has(&text, "freezer_guard_guards_begun_total 3"))
    })
}

/// A guard ends while the service, which is idle, waits to see whether any is in force.
fn once(hierarchy: Hierarchy) -> Result<()> {
    let _enabled = Enabled::new()?;
    let counts = |what: &str| Ok(has(&metrics(TCP)?, &format!("freezer_guard_{what} 1")));
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    eventually("the guard counts", || counts("guards_begun_total"))?;
    let mut owner = lock()?;
    // It is idle after 2 s.
    thread::sleep(Duration::from_secs(4));
    held.process().signal(Signal::SIGKILL)?;
    held.process().close_input();
    eventually("the guard goes", || Ok(target.thaw().is_ok()))?;
    owner.close_input();
    owner.wait(LONG)?;
    eventually("its end counts", || counts("hold_seconds_count"))?;
    expect_idle()?;
    ensure!(counts("guards_begun_total")?, "{}", metrics(TCP)?);
    Ok(())
}

fn stop(_: Hierarchy) -> Result<()> {
    let _enabled = Enabled::new()?;
    metrics(TCP)?;
    systemctl(&["stop", "freezer-guard.socket", "freezer-guard.service"])?.expect(0)?;
    ensure!(
        property(UNIT, "ActiveState")? == "inactive",
        "it still listens"
    );
    ensure!(!answers(TCP)? && !answers(UNIX)?);
    ensure!(property("freezer-guard", "ActiveState")? == "inactive");
    systemctl(&["start", "freezer-guard.socket", "freezer-guard.service"])?.expect(0)?;
    metrics(TCP)?;
    metrics(UNIX)?;
    expect_idle()
}

fn wrong_configuration(_: Hierarchy) -> Result<()> {
    let _enabled = Enabled::new()?;
    let before = fs::read_to_string(CONFIG)?;
    fs::write(CONFIG, "nonsense = 1\n")?;
    ensure!(systemctl(&["restart", "freezer-guard"])?.code != 0);
    let invocation = || property("freezer-guard", "InvocationID");
    let first = invocation()?;
    ensure!(!answers(TCP)?, "who answers?");
    eventually("it was started once more", || Ok(invocation()? != first))?;
    eventually("it has failed again", || {
        Ok(property("freezer-guard", "ActiveState")? == "failed")
    })?;
    let second = invocation()?;
    thread::sleep(Duration::from_secs(3));
    ensure!(invocation()? == second, "it starts again and again");
    ensure!(
        property(UNIT, "ActiveState")? == "active",
        "the socket has failed"
    );
    fs::write(CONFIG, before)?;
    systemctl(&["start", "freezer-guard"])?.expect(0)?;
    metrics(TCP)?;
    expect_idle()
}

/// The daemon by itself, as in a container.
fn without_systemd(_: Hierarchy) -> Result<()> {
    const PATH: &str = "/run/freezer-guard-metrics-test";
    systemctl(&["stop", "freezer-guard.socket", "freezer-guard.service"])?.expect(0)?;
    let unix = format!("unix:{PATH}");
    let daemon = || {
        let mut daemon = Command::new("/usr/bin/freezer-guard");
        daemon
            .arg("daemon")
            .args(["--metrics", TCP, "--metrics", &unix]);
        daemon
    };
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let running = Process::spawn(&mut daemon())?;
        for address in [TCP, &unix] {
            eventually("it is answered", || answers(address))?;
        }
        run(&mut daemon())?.expect(75)?;
        running.signal(signal)?;
        running.wait(LONG)?;
        ensure!(!answers(TCP)?);
    }
    fs::remove_file(PATH)?;
    let mut wrong = Command::new("/usr/bin/freezer-guard");
    wrong.args(["daemon", "--metrics", "localhost:80"]);
    run(&mut wrong)?.expect(64)?.says("IP:PORT")?;
    systemctl(&["start", "freezer-guard.socket", "freezer-guard.service"])?.expect(0)?;
    expect_idle()
}
