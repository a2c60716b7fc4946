//! A container of one engine's, from a root file system made here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        cgroups::{Counters, Hierarchy, unique, within},
        process::{LONG, run},
        service::property,
    },
    Way,
};

/// A container runtime, or podman with one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Runc,
    Crun,
    PodmanRunc,
    PodmanCrun,
}

impl Engine {
    pub(super) const ALL: [Self; 4] = [Self::Runc, Self::Crun, Self::PodmanRunc, Self::PodmanCrun];

    fn runtime(self) -> &'static str {
        match self {
            Self::Runc | Self::PodmanRunc => "runc",
            Self::Crun | Self::PodmanCrun => "crun",
        }
    }

    pub(super) fn is_podman(self) -> bool {
        matches!(self, Self::PodmanRunc | Self::PodmanCrun)
    }

    /// `podman with runc`
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::PodmanRunc => "podman with runc",
            Self::PodmanCrun => "podman with crun",
        }
    }

    /// `podman 5.4.2, runc 1.1.15`
    pub(super) fn versions(self) -> Result<String> {
        let version = |program: &str| -> Result<String> {
            let said = run(Command::new(program).arg("--version"))?
                .expect(0)?
                .stdout;
            // `runc version 1.1.15+ds1`, `podman version 5.4.2`, `crun version 1.21`
            let version = said.split_whitespace().nth(2).context("a version")?;
            let version = version.split('+').next().unwrap_or(version);
            Ok(format!("{program} {version}"))
        };
        let runtime = version(self.runtime())?;
        Ok(match self.is_podman() {
            true => format!("{}, {runtime}", version("podman")?),
            false => runtime,
        })
    }

    /// Whether it can checkpoint at all: some builds of crun's cannot.
    pub(super) fn can_checkpoint(self) -> Result<bool> {
        let said = run(Command::new(self.runtime()).arg("--version"))?.stdout;
        Ok(self.runtime() == "runc" || said.contains("+CRIU"))
    }

    /// crun has CRIU seize running tasks for it.
    pub(super) fn freezes_for_a_pre_dump(self) -> bool {
        self.runtime() == "runc"
    }

    fn command(self) -> Command {
        match self.is_podman() {
            true => {
                let mut command = Command::new("podman");
                command.args(["--runtime", self.runtime()]);
                command
            }
            false => {
                let mut command = Command::new(self.runtime());
                command.arg("--systemd-cgroup");
                command
            }
        }
    }
}

/// A container whose processes count.
pub(super) struct Container {
    pub(super) engine: Engine,
    pub(super) id: String,
    bundle: PathBuf,
    hierarchy: Hierarchy,
}

/// The slice of containers that runc and crun start.
const SLICE: &str = "engines.slice";
/// How many processes count.
const PROCESSES: usize = 3;

/// Which checkpoint.
#[derive(Clone, Copy, Default)]
pub(super) struct Kind<'a> {
    pub(super) leave_running: bool,
    pub(super) pre_dump: bool,
    /// The image that it builds on.
    pub(super) parent: Option<&'a str>,
}

impl Container {
    pub(super) fn start(engine: Engine, hierarchy: Hierarchy) -> Result<Self> {
        let id = unique();
        let bundle = Path::new("/root").join(&id);
        let rootfs = bundle.join("rootfs");
        for folder in ["count", "proc", "sys", "dev", "etc", "run", "tmp"] {
            fs::create_dir_all(rootfs.join(folder))?;
        }
        fs::copy("/guest/bin/guest-tool", rootfs.join("guest-tool"))?;
        let container = Self {
            engine,
            id,
            bundle,
            hierarchy,
        };
        let processes = (PROCESSES - 1).to_string();
        let program = ["/guest-tool", "count", "/count", "--processes", &processes];
        let mut command = engine.command();
        if engine.is_podman() {
            command.args(["run", "-d", "--network", "host", "--name", &container.id]);
            command.arg("--rootfs").arg(&rootfs).args(program);
        } else {
            container.configure(&program)?;
            command
                .args(["run", "-d", "--bundle"])
                .arg(&container.bundle);
            command.arg(&container.id);
        }
        quietly(&mut command)?;
        within(LONG, "the container counts", || {
            Ok(container
                .counters()
                .read()
                .is_ok_and(|all| all.iter().all(|n| *n > 0)))
        })?;
        Ok(container)
    }

    /// What `spec` makes, for this program, without a network of its own: that cannot
    /// be dumped everywhere.
    fn configure(&self, program: &[&str]) -> Result<()> {
        let spec = run(Command::new(self.engine.runtime())
            .arg("spec")
            .current_dir(&self.bundle))?;
        spec.expect(0)?;
        let path = self.bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(program);
        config["root"]["readonly"] = false.into();
        let scope = format!("{SLICE}:{}:{}", self.engine.runtime(), self.id);
        config["linux"]["cgroupsPath"] = scope.into();
        config["linux"]["namespaces"]
            .as_array_mut()
            .context("namespaces")?
            .retain(|namespace| namespace["type"] != "network");
        Ok(fs::write(&path, serde_json::to_vec(&config)?)?)
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            dir: self.bundle.join("rootfs/count"),
            processes: PROCESSES,
        }
    }

    /// The engine's command with this verb.
    pub(super) fn verb(&self, words: &[&str]) -> Command {
        let mut command = self.engine.command();
        command.args(words).arg(&self.id);
        command
    }

    /// The directory of an image that runc or crun makes.
    fn image(&self, name: &str) -> PathBuf {
        self.bundle.join("images").join(name)
    }

    /// The directory of CRIU's log of that image.
    pub(super) fn work_dir(&self, name: &str) -> PathBuf {
        self.image(&format!("{name}.work"))
    }

    /// A checkpoint; podman keeps the image itself.
    pub(super) fn checkpoint(&self, way: Way, name: &str, kind: Kind<'_>) -> Result<Command> {
        let mut command = match way {
            Way::Bare | Way::Automatic => self.engine.command(),
            Way::Run => {
                let mut command = Command::new("freezer-guard");
                let pid = self.pid()?.to_string();
                command.args(["run", "--freeze", "--pid", &pid]);
                if kind.pre_dump && !self.engine.freezes_for_a_pre_dump() {
                    command.arg("--thaw");
                }
                command.arg("--");
                let engine = self.engine.command();
                command.arg(engine.get_program()).args(engine.get_args());
                command
            }
        };
        if self.engine.is_podman() {
            command.args(["container", "checkpoint"]);
            command.args(kind.pre_dump.then_some("--pre-checkpoint"));
            command.args(kind.parent.map(|_| "--with-previous"));
        } else {
            command.arg("checkpoint");
            let work = self.work_dir(name);
            fs::create_dir_all(&work)?;
            command.arg("--image-path").arg(self.image(name));
            command.arg("--work-path").arg(work);
            command.args(kind.pre_dump.then_some("--pre-dump"));
            if let Some(parent) = kind.parent {
                command.arg("--parent-path").arg(format!("../{parent}"));
            }
        }
        command.args(kind.leave_running.then_some("--leave-running"));
        command.arg(&self.id);
        Ok(command)
    }

    pub(super) fn restore(&self, name: &str) -> Result<()> {
        if self.engine.is_podman() {
            return quietly(&mut self.verb(&["container", "restore"]));
        }
        // A scope of that name must not be there any more.
        let scope = format!("{}-{}.scope", self.engine.runtime(), self.id);
        within(LONG, "systemd forgets the scope", || {
            Ok(property(&scope, "LoadState")? == "not-found")
        })?;
        let work = self.image("restore.work");
        fs::create_dir_all(&work)?;
        let mut command = self.engine.command();
        command
            .args(["restore", "-d", "--bundle"])
            .arg(&self.bundle);
        command.arg("--image-path").arg(self.image(name));
        command.arg("--work-path").arg(&work).arg(&self.id);
        quietly(&mut command).with_context(|| super::super::dump::log(&work, "restore.log"))
    }

    /// What the engine says of it: `running`, `paused`, `exited`; nothing when it
    /// knows it no more.
    pub(super) fn status(&self) -> Result<Option<String>> {
        Ok(self.inspect()?.map(|(status, _)| status))
    }

    /// Its first process.
    pub(super) fn pid(&self) -> Result<i32> {
        Ok(self.inspect()?.context("it is not there")?.1)
    }

    fn inspect(&self) -> Result<Option<(String, i32)>> {
        let (mut command, at) = match self.engine.is_podman() {
            true => (
                self.verb(&["container", "inspect"]),
                ["/0/State/Status", "/0/State/Pid"],
            ),
            false => (self.verb(&["state"]), ["/status", "/pid"]),
        };
        let finished = run(&mut command)?;
        if finished.code != 0 {
            return Ok(None);
        }
        let said: Value = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("not JSON: {finished:?}"))?;
        let [status, pid] = at.map(|at| said.pointer(at).cloned().unwrap_or_default());
        let status = status.as_str().context("a status")?.to_owned();
        Ok(Some((status, i32::try_from(pid.as_i64().unwrap_or(0))?)))
    }

    /// The cgroup that its first process is in.
    pub(super) fn cgroup(&self) -> Result<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid()?))?;
        let begin = match self.hierarchy {
            Hierarchy::V1 => ":freezer:/",
            Hierarchy::V2 => "0::/",
        };
        let path = text
            .lines()
            .find_map(|line| Some(line.split_once(begin)?.1));
        let path = path.context("a line about the freezer")?;
        Ok(self.hierarchy.root().join(path))
    }

    /// Its unit, and the slice of that.
    pub(super) fn units(&self) -> Result<(String, &'static str)> {
        let slice = match self.engine.is_podman() {
            true => "machine.slice",
            false => SLICE,
        };
        let cgroup = self.cgroup()?;
        let scope = cgroup.iter().find_map(|part| {
            let part = part.to_str()?;
            part.ends_with(".scope").then(|| part.to_owned())
        });
        Ok((
            scope.with_context(|| format!("no scope in {}", cgroup.display()))?,
            slice,
        ))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let verbs: &[&[&str]] = match self.engine.is_podman() {
            true => &[&["kill"], &["rm", "-f", "-t", "0"]],
            false => &[&["kill", "--all"], &["delete", "-f"]],
        };
        for verb in verbs {
            // It may have gone, or never have come.
            let _ = run(&mut self.verb(verb));
        }
        let _ = fs::remove_dir_all(&self.bundle);
    }
}

/// Runs what leaves a container behind: it inherits our standard files.
fn quietly(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
