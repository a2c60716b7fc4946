//! containerd's Container Runtime Interface, as a kubelet calls it: a pod with one container.
//! `CheckpointContainer` always leaves the container running. Its archive is not restored:
//! containerd pulls the image of the container from a registry first.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{
    super::{
        cgroups::eventually,
        process::{run, tool},
        service::systemctl,
    },
    containerd::{Containerd, ctr, task},
    engine::{Ending, Engine, Home, Kind, PROGRAM, State, Verb, command},
    image,
};

const NAMESPACE: &str = "k8s.io";
const CONFIG: &str = "/etc/containerd/config.toml";

/// containerd by its CRI.
pub(super) struct Cri;

impl Cri {
    /// The id that the CRI gave to the pod or to the container, or the first process's.
    fn id(home: &Home, what: &str) -> Result<String> {
        let path = home.dir.join(what);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn call(words: &[&str]) -> Command {
        let mut command = command("guest-tool", &["cri"]);
        command.args(words);
        command
    }
}

impl Engine for Cri {
    fn title(&self) -> &'static str {
        "containerd's CRI"
    }

    fn versions(&self) -> Result<String> {
        Containerd.versions()
    }

    /// containerd has `CheckpointContainer` since 2.0.
    fn is_in(&self, release: &str) -> bool {
        !matches!(release, "bookworm" | "trixie")
    }

    fn daemon(&self) -> Option<&'static str> {
        Containerd.daemon()
    }

    fn ending(&self) -> Ending {
        Ending::Never
    }

    /// The second `CheckpointContainer` removes the directory that CRIU works in for the first
    /// (containerd 2.1, `container_checkpoint_linux.go`).
    fn bears_a_second_checkpoint(&self) -> bool {
        false
    }

    /// The cgroup of a pod is no unit, unless a kubelet makes one.
    fn slice(&self) -> Option<&'static str> {
        None
    }

    /// The pod's own container is made of the same image: there is no network to pull
    /// another one.
    fn prepare(&self) -> Result<()> {
        let config = format!(
            "version = 3\n\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n\
             sandbox = \"{}\"\n",
            image::NAME
        );
        if fs::read_to_string(CONFIG).ok().as_ref() != Some(&config) {
            fs::write(CONFIG, config)?;
            systemctl(&["restart", "containerd"])?.expect(0)?;
        }
        image::import(NAMESPACE)?;
        // An event of containerd tells the CRI of the image, some time after the import.
        eventually("the CRI has the image", || {
            Ok(run(&mut Self::call(&["has-image", image::NAME]))?.code == 0)
        })
    }

    fn start(&self, home: &Home) -> Result<()> {
        let mut command = Self::call(&["run", &home.id, image::NAME, "--"]);
        let output = run(command.args(PROGRAM))?.expect(0)?.stdout;
        let mut ids = output.lines();
        for what in ["pod", "container"] {
            fs::write(home.dir.join(what), ids.next().context("an id")?)?;
        }
        let (_, pid) = self.inspect(home)?.context("it has not started")?;
        Ok(fs::write(home.dir.join("pid"), pid.to_string())?)
    }

    fn checkpoint(&self, home: &Home, name: &str, _: Kind<'_>) -> Result<Command> {
        let container = Self::id(home, "container")?;
        let mut command = Self::call(&["checkpoint", &container]);
        command.arg(archive(home, name)?);
        Ok(command)
    }

    fn restore(&self, _: &Home, _: &str) -> Result<()> {
        bail!("containerd pulls the image of the container that was checkpointed: no registry")
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        task(NAMESPACE, &Self::id(home, "container")?)
    }

    /// Its root is a snapshot of containerd's. During a checkpoint containerd does not answer,
    /// so the pid has to be known by now.
    fn counters(&self, home: &Home) -> PathBuf {
        let pid = Self::id(home, "pid").unwrap_or_default();
        PathBuf::from(format!("/proc/{pid}/root/count"))
    }

    /// A kubelet cannot pause; `ctr` can.
    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let id = Self::id(home, "container").unwrap_or_default();
        Some(match verb {
            Verb::Pause => ctr(NAMESPACE, &["tasks", "pause", &id]),
            Verb::Resume => ctr(NAMESPACE, &["tasks", "resume", &id]),
            Verb::Exec => Self::call(&["exec", &id, "--", "/guest-tool", "--help"]),
            Verb::Update => return None,
            Verb::Kill => ctr(NAMESPACE, &["tasks", "kill", "-s", "KILL", &id]),
            Verb::Stop => Self::call(&["stop", &id]),
            Verb::Remove => ctr(NAMESPACE, &["tasks", "delete", "-f", &id]),
            Verb::RestartAlways => return None,
        })
    }

    fn remove(&self, home: &Home) {
        // It may have gone, or never have come.
        if let Ok(pod) = Self::id(home, "pod") {
            let _ = tool(["cri", "remove", &pod]);
        }
    }
}

fn archive(home: &Home, name: &str) -> Result<PathBuf> {
    let path = home.image(&format!("{name}.tar"));
    fs::create_dir_all(home.image(""))?;
    Ok(path)
}
