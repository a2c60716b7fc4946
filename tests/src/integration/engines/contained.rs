//! The service in a container: podman runs the image with the settings of the DaemonSet, and the host's
//! own program works with it.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    super::{
        List,
        cgroups::{Cgroup, Hierarchy, Workload, unique, within},
        process::{Finished, Held, LONG, Process, guard, guards, last_guard, run, status},
        service::{eventually, is_attached, systemctl},
        units, varlink,
    },
    Way,
    attempt::{armed, hold},
    container::Container,
    engine::{Kind, Verb},
    life::is_violated,
    oci::Oci,
    pod::{container_arguments, pod_arguments, texts},
};
use crate::config::CONTAINER_IMAGE_PATH;

/// The manifest of the DaemonSet.
const MANIFEST: &str = include_str!("../../../../packaging/kubernetes/base/daemonset.yaml");

/// The part of each change.
pub(in super::super) fn list(list: &mut List<'_>) {
    // The image is for nodes of Kubernetes, which has given v1 up.
    if list.config.cgroup == crate::config::Cgroup::V2 {
        list.add("guards_the_host", |h| guards_the_host(h, Namespace::Own));
    }
}

/// The rest of it.
pub(in super::super) fn list_all(list: &mut List<'_>) {
    if list.config.cgroup != crate::config::Cgroup::V2 {
        return;
    }
    list.add("guards_the_host", |h| guards_the_host(h, Namespace::Own));
    list.add("guards_the_host_in_its_cgroup_namespace", |h| {
        guards_the_host(h, Namespace::OfHost)
    });
    list.add("replaced_in_mid_dump", |h| replaced(h, "stop"));
    list.add("killed_in_mid_dump", |h| replaced(h, "kill"));
    list.add("begins_by_pid", begins_by_pid);
    list.add("finishes_the_stop_of_a_unit", finishes_a_stop);
    list.add("refuses_a_wrong_container", wrong);
}

/// The cgroup namespace of the container. Kubernetes cannot choose: an engine gives a container that is not
/// privileged one of its own.
#[derive(Clone, Copy)]
enum Namespace {
    Own,
    OfHost,
}

/// The service in its container.
struct Service {
    name: String,
    pod: Value,
}

impl Service {
    fn start(namespace: Namespace) -> Result<Self> {
        let service = Self::load()?;
        // podman's monitor would keep a pipe open.
        let mut command = service.command(namespace)?;
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(started.success(), "{command:?}: {started}");
        service.wait_ready()?;
        Ok(service)
    }

    /// Loads the image, and stops a service of the host.
    fn load() -> Result<Self> {
        // One that is installed may run.
        let _ = systemctl(&["stop", "freezer-guard.socket", "freezer-guard.service"])?;
        let manifest: Value = serde_saphyr::from_str(MANIFEST)?;
        let service = Self {
            name: unique(),
            pod: manifest["spec"]["template"]["spec"].clone(),
        };
        // No service is there yet: no probe may say otherwise.
        for name in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let command = texts(&service.container()[name]["exec"]["command"])?;
            guard(&command[1..])?.expect(70).context(name)?;
        }
        let image = service.image()?;
        if run(Command::new("podman").args(["image", "exists", image]))?.code != 0 {
            let load = ["load", "--quiet", "--input", CONTAINER_IMAGE_PATH];
            let loaded = run(Command::new("podman").args(load))?.expect(0)?;
            ensure!(loaded.stdout.contains(image), "{}", loaded.stdout);
        }
        Ok(service)
    }

    /// The command that starts it.
    fn command(&self, namespace: Namespace) -> Result<Command> {
        let mut command = Command::new("podman");
        command.args(["run", "--detach", "--name", &self.name]);
        command.args(["--network", "none", "--cgroupns"]);
        command.arg(match namespace {
            Namespace::Own => "private",
            Namespace::OfHost => "host",
        });
        command.args(pod_arguments(&self.pod)?);
        command.args(container_arguments(self.container())?);
        command.arg(self.image()?);
        command.args(texts(&self.container()["args"])?);
        Ok(command)
    }

    fn image(&self) -> Result<&str> {
        self.container()["image"].as_str().context("an image")
    }

    fn container(&self) -> &Value {
        &self.pod["containers"][0]
    }

    /// Runs a program in the container.
    fn exec(&self, words: &[&str]) -> Result<Finished> {
        run(Command::new("podman")
            .args(["exec", &self.name])
            .args(words))
    }

    /// What the program in the container prints.
    fn status(&self, arguments: &[&str]) -> Result<Value> {
        let words = [&["freezer-guard", "status", "--json"], arguments].concat();
        let finished = self.exec(&words)?.expect(0)?;
        Ok(serde_json::from_str(&finished.stdout)?)
    }

    fn probe(&self, name: &str) -> Result<Finished> {
        let command = texts(&self.container()[name]["exec"]["command"])?;
        self.exec(&command).with_context(|| name.to_owned())
    }

    /// Waits as the kubelet does.
    fn wait_ready(&self) -> Result<()> {
        within(LONG, "the container is ready", || {
            let running = ["inspect", "--format", "{{.State.Running}}", &self.name];
            let running = run(Command::new("podman").args(running))?.stdout;
            ensure!(running.trim() == "true", "it has ended: {}", self.log()?);
            Ok(self.probe("startupProbe")?.code == 0)
        })?;
        for probe in ["livenessProbe", "readinessProbe"] {
            self.probe(probe)?.expect(0).context(probe)?;
        }
        Ok(())
    }

    fn pid(&self) -> Result<String> {
        let pid = ["inspect", "--format", "{{.State.Pid}}", &self.name];
        let pid = run(Command::new("podman").args(pid))?.expect(0)?;
        Ok(pid.stdout.trim().to_owned())
    }

    fn log(&self) -> Result<String> {
        let logged = run(Command::new("podman").args(["logs", &self.name]))?;
        Ok(logged.stdout + &logged.stderr)
    }

    /// Ends and removes it. `verb`: `stop`, or `kill`.
    fn end(self, verb: &str) -> Result<()> {
        let seconds = self.pod["terminationGracePeriodSeconds"].to_string();
        let mut command = Command::new("podman");
        match verb {
            "stop" => command.args(["stop", "--time", &seconds]),
            _ => command.args(["kill"]),
        };
        run(command.arg(&self.name))?.expect(0)?;
        let log = self.log()?;
        ensure!(!log.contains("panicked"), "{log}");
        let is_told = log.contains("stopping; guards in force stay in force");
        ensure!(is_told == (verb == "stop"), "{log}");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let remove = ["rm", "--force", "--time", "1", &self.name];
        let _ = run(Command::new("podman").args(remove));
    }
}

const PINS: &str = "/sys/fs/bpf/freezer-guard";

/// The service in the container and the program of the host are one.
fn guards_the_host(hierarchy: Hierarchy, namespace: Namespace) -> Result<()> {
    let service = Service::start(namespace)?;
    guard(["daemon"])?
        .expect(75)?
        .says("another daemon is already running")?;
    one_guard(&service, hierarchy)?;
    automatic(&service, hierarchy)?;
    ensure!(is_attached("bprm_committed_creds"), "nothing watches");
    // It is removed.
    service.end("stop")?;
    ensure!(!is_attached("bprm_committed_creds"), "it still watches");
    ensure!(guards()?.is_empty(), "a guard is left");
    guard(["unload"])?.expect(0)?;
    let left = fs::read_dir(PINS).map_or(0, Iterator::count);
    ensure!(left == 0, "{left} pins are left");
    Ok(())
}

/// A guard that the host begins is known in the container, which cannot begin another one there.
fn one_guard(service: &Service, hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let (inside, outside) = (service.status(&[])?, status(&[])?);
    for key in ["id", "cgroups", "level", "holder_pids"] {
        let [inside, outside] = [&inside, &outside].map(|all| &all["guards"][0][key]);
        ensure!(
            inside == outside && !inside.is_null(),
            "{key}: {inside} {outside}"
        );
    }
    let inside = &service.status(&[&target.text()])?;
    ensure!(
        inside["guard"]["id"] == outside["guards"][0]["id"],
        "{inside}"
    );
    let run = ["freezer-guard", "run", "--cgroup", &target.text()];
    service
        .exec(&[&run[..], &["--", "freezer-guard", "status"]].concat())?
        .expect(75)?
        .says(&target.text())?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    Ok(())
}

/// A checkpoint of another container has a guard by itself.
fn automatic(service: &Service, hierarchy: Hierarchy) -> Result<()> {
    let container = Container::start(&Oci::RUNC, hierarchy)?;
    let cgroup = container.cgroup()?;
    let kind = Kind {
        leave_running: true,
        ..Kind::default()
    };
    run(&mut container.checkpoint(Way::Automatic, "image", kind)?)?.expect(0)?;
    let mut last = Value::Null;
    eventually("its guard is remembered", || {
        last = last_guard().unwrap_or_default();
        Ok(last["automatic"] == true && last["cgroups"][0] == *cgroup.to_string_lossy())
    })?;
    ensure!(last["level"] == "enforce" && !is_violated(&last), "{last}");
    let inside = service.status(&["--last"])?;
    let inside = inside["guards"].as_array().and_then(|all| all.last());
    ensure!(inside == Some(&last), "{inside:?}");
    container.counters().expect_counting_from(&[])
}

/// The pod is replaced while CRIU holds the tasks: the guard stays, and the next service records its end.
fn replaced(hierarchy: Hierarchy, verb: &str) -> Result<()> {
    let service = Service::start(Namespace::Own)?;
    let container = Container::start(&Oci::RUNC, hierarchy)?;
    let since = container.counters().read()?;
    let (checkpoint, criu) = hold(&container, Way::Automatic, Kind::default())?;
    let criu = Pid::from_raw(criu);
    hold_longer(&container, criu)?;
    let guard = armed(Way::Automatic)?;
    service.end(verb)?;
    // By the kernel alone.
    ensure!(container.expect(Verb::Pause).is_err(), "it is paused");
    ensure!(armed(Way::Automatic)?["id"] == guard["id"], "another guard");
    let service = Service::start(Namespace::Own)?;
    let inside = service.status(&[])?;
    ensure!(inside["guards"][0]["id"] == guard["id"], "{inside}");
    ensure!(container.expect(Verb::Pause).is_err(), "it is paused");
    kill(criu, Signal::SIGCONT)?;
    checkpoint.wait(LONG)?.expect(0)?;
    within(LONG, "the guard goes", || Ok(guards()?.is_empty()))?;
    eventually("its guard is remembered", || {
        Ok(last_guard()?["id"] == guard["id"])
    })?;
    let last = last_guard()?;
    ensure!(!is_violated(&last), "{last}");
    ensure!(last["denials"]["freeze"].as_u64() >= Some(2), "{last}");
    container.restore("image")?;
    container.counters().expect_counting_from(&since)
}

/// Lets CRIU go on until it dumps a task: before that it gives up after ten seconds (`--timeout`).
fn hold_longer(container: &Container, criu: Pid) -> Result<()> {
    let log = container.work_dir("image").join("dump.log");
    kill(criu, Signal::SIGCONT)?;
    let start = Instant::now();
    while !fs::read_to_string(&log)?.contains("Dumping task") {
        ensure!(start.elapsed() < LONG, "CRIU dumps no task");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(kill(criu, Signal::SIGSTOP)?)
}

/// In its cgroup namespace the service finds the cgroup of a pid, and that of init.
fn begins_by_pid(hierarchy: Hierarchy) -> Result<()> {
    let service = Service::start(Namespace::Own)?;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let mut client = varlink::command(
        "io.freezerguard.Begin",
        &json!({ "pid": workload.pid, "freeze": true }),
    );
    let mut client = Process::spawn(client.arg("--hold"))?;
    let begun: Value = serde_json::from_str(&client.line()?)?;
    let begun = &begun["parameters"]["guard"];
    ensure!(begun["cgroups"] == json!([target.text()]), "{begun}");
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    client.tell("")?;
    client.wait(LONG)?.expect(0)?;
    eventually("it is thawed", || Ok(target.state()? == "THAWED"))?;
    workload.expect_counting()?;
    // Targets that contain init, the service, or the caller.
    let pids = [
        "1".to_owned(),
        service.pid()?,
        std::process::id().to_string(),
    ];
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = text.trim().strip_prefix("0::/").context("v2")?;
        let path = hierarchy.root().join(path);
        if path == hierarchy.root() {
            continue;
        }
        let begin = json!({ "cgroups": [path], "freeze": true });
        let refused = run(&mut varlink::command("io.freezerguard.Begin", &begin))?;
        varlink::expect_error(&refused, "BadRequest")
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The service asks the host's systemd, whose socket the container does not have.
fn finishes_a_stop(_: Hierarchy) -> Result<()> {
    let service = Service::start(Namespace::Own)?;
    let unit = units::given_up()?;
    within(LONG, "the stop is finished", || Ok(unit.pids()?.is_empty()))?;
    let log = service.log()?;
    ensure!(log.contains("killed the remaining processes of"), "{log}");
    Ok(())
}

/// Without something of the host's the service says so, and does not work beside another one.
fn wrong(_: Hierarchy) -> Result<()> {
    let service = Service::load()?;
    let said = [
        ("--pid", 69, "initial pid namespace"),
        ("/sys/fs/bpf", 77, "mount the host's"),
        ("/run/freezer-guard", 69, "mount the host's"),
    ];
    for (missing, code, says) in said {
        let whole = service.command(Namespace::Own)?;
        let mut command = Command::new("podman");
        let mut arguments = whole
            .get_args()
            .filter(|word| *word != "--detach")
            .peekable();
        while let Some(word) = arguments.next() {
            let is_missing = word == missing
                || arguments
                    .peek()
                    .and_then(|next| next.to_str())
                    .is_some_and(|next| word == "--volume" && next.starts_with(missing));
            match is_missing {
                true => drop(arguments.next()),
                false => drop(command.arg(word)),
            }
        }
        let finished = run(&mut command)?;
        ensure!(finished.code == code, "without {missing}: {finished:?}");
        finished.says(says).context(missing)?;
        run(Command::new("podman").args(["rm", &service.name]))?.expect(0)?;
    }
    Ok(())
}
