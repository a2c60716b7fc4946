//! Docker: dockerd has containerd start runc, and runc starts CRIU. dockerd keeps the images
//! of checkpoints.

use std::{fs, path::Path, process::Command};

use anyhow::Result;
use serde_json::json;

use super::{
    super::{process::run, service::systemctl},
    engine::{self, Engine, Home, Kind, PROGRAM, SLICE, State, Verb, quietly},
    image,
};

const CONFIG: &str = "/etc/docker/daemon.json";

/// Docker with its experimental checkpoints.
pub(super) struct Docker;

impl Docker {
    fn command(words: &[&str]) -> Command {
        let mut command = engine::command("docker", &["--host", "unix:///run/docker.sock"]);
        command.args(words);
        command
    }
}

impl Engine for Docker {
    fn title(&self) -> &'static str {
        "Docker"
    }

    fn versions(&self) -> Result<String> {
        let programs = ["docker", "containerd", "runc"].map(engine::version);
        let versions: Result<Vec<_>> = programs.into_iter().collect();
        Ok(versions?.join(", "))
    }

    fn is_in(&self, release: &str) -> bool {
        release != "bookworm"
    }

    fn daemon(&self) -> Option<&'static str> {
        Some("docker")
    }

    /// The guest has no network to make a bridge for.
    fn prepare(&self) -> Result<()> {
        if !Path::new(CONFIG).exists() {
            let config = json!({
                "experimental": true,
                "bridge": "none",
                "iptables": false,
                "ip6tables": false,
                "exec-opts": ["native.cgroupdriver=systemd"],
            });
            fs::create_dir_all("/etc/docker")?;
            fs::write(CONFIG, serde_json::to_vec(&config)?)?;
        }
        systemctl(&["start", "docker"])?.expect(0)?;
        if run(&mut Self::command(&["image", "inspect", image::NAME]))?.code != 0 {
            run(Self::command(&["load", "-q", "-i"]).arg(image::archive()?))?.expect(0)?;
        }
        Ok(())
    }

    fn start(&self, home: &Home) -> Result<()> {
        let volume = format!("{}:/count", home.counters().display());
        let mut run = Self::command(&["run", "-d", "--network", "host", "--name", &home.id]);
        run.args(["--cgroup-parent", SLICE, "-v", &volume, image::NAME]);
        quietly(run.args(PROGRAM))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        let mut command = Self::command(&["checkpoint", "create"]);
        command.args(kind.leave_running.then_some("--leave-running"));
        command.args([&home.id, name]);
        Ok(command)
    }

    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        let words = ["start", "--checkpoint", name, &home.id];
        quietly(&mut Self::command(&words))
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let mut command = Self::command(&["container", "inspect", &home.id]);
        engine::inspect(&mut command, ["/0/State/Status", "/0/State/Pid"])
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let id = &*home.id;
        let update = ["update", "--memory", "300m", "--memory-swap", "300m", id];
        let words = match verb {
            Verb::Pause => &["pause", id][..],
            Verb::Resume => &["unpause", id],
            Verb::Exec => &["exec", id, "/guest-tool", "--help"],
            Verb::Update => &update,
            Verb::Kill => &["kill", id],
            Verb::Stop => &["stop", "-t", "1", id],
            Verb::Remove => &["rm", "-f", id],
            Verb::RestartAlways => &["update", "--restart", "always", id],
        };
        Some(Self::command(words))
    }

    fn remove(&self, home: &Home) {
        // It may have gone, or never have come.
        let _ = run(&mut Self::command(&["rm", "-f", &home.id]));
    }
}
