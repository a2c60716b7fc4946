//! LXC: `lxc-checkpoint` starts CRIU itself. systemd does not know the containers.

use std::{fs, process::Command};

use anyhow::Result;

use super::{
    super::process::run,
    engine::{Engine, Home, Kind, PROGRAM, State, Verb, command, quietly, version},
};

/// LXC with its own tools.
pub(super) struct Lxc;

impl Lxc {
    /// One of LXC's tools, for this container.
    fn tool(tool: &str, home: &Home, words: &[&str]) -> Command {
        let mut command = command(tool, &["--name", &home.id]);
        command.arg("--lxcpath").arg(&home.dir).args(words);
        command
    }
}

impl Engine for Lxc {
    fn title(&self) -> &'static str {
        "LXC"
    }

    fn versions(&self) -> Result<String> {
        Ok(version("lxc-start")?.replace("lxc-start", "LXC"))
    }

    fn is_in(&self, release: &str) -> bool {
        release != "bookworm"
    }

    /// LXC does not find the cgroup of a restored container.
    fn checkpoints_restored(&self) -> bool {
        false
    }

    fn slice(&self) -> Option<&'static str> {
        None
    }

    fn start(&self, home: &Home) -> Result<()> {
        let config = [
            ("lxc.uts.name", home.id.clone()),
            (
                "lxc.rootfs.path",
                format!("dir:{}", home.rootfs().display()),
            ),
            ("lxc.init.cmd", PROGRAM.join(" ")),
            ("lxc.net.0.type", "none".to_owned()),
            // CRIU cannot dump a terminal outside of the container.
            ("lxc.console.path", "none".to_owned()),
            ("lxc.tty.max", "0".to_owned()),
            ("lxc.pty.max", "1".to_owned()),
            ("lxc.apparmor.profile", "unconfined".to_owned()),
            ("lxc.mount.auto", "proc:rw sys:rw".to_owned()),
        ];
        let config = config.map(|(key, value)| format!("{key} = {value}\n"));
        let dir = home.dir.join(&home.id);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("config"), config.concat())?;
        quietly(&mut Self::tool("lxc-start", home, &["--daemon"]))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        let image = home.image(name);
        fs::create_dir_all(&image)?;
        let mut command = Self::tool("lxc-checkpoint", home, &["--checkpoint-dir"]);
        command.arg(image);
        command.args((!kind.leave_running).then_some("--stop"));
        Ok(command)
    }

    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        let words = ["--restore", "--daemon", "--checkpoint-dir"];
        let mut command = Self::tool("lxc-checkpoint", home, &words);
        quietly(command.arg(home.image(name)))
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let value = |what: &str| -> Result<Option<String>> {
            let finished = run(&mut Self::tool("lxc-info", home, &["--no-humanize", what]))?;
            Ok((finished.code == 0).then(|| finished.stdout.trim().to_owned()))
        };
        let Some(state) = value("--state")? else {
            return Ok(None);
        };
        // It has none if it does not run.
        let pid = value("--pid")?.and_then(|pid| pid.parse().ok());
        Ok(Some((State::of(&state), pid.unwrap_or(0))))
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let (tool, words): (_, &[&str]) = match verb {
            Verb::Pause => ("lxc-freeze", &[]),
            Verb::Resume => ("lxc-unfreeze", &[]),
            Verb::Exec => ("lxc-attach", &["--", "/guest-tool", "--help"]),
            Verb::Update => ("lxc-cgroup", &["memory.max", "300000000"]),
            Verb::Kill => ("lxc-stop", &["--kill"]),
            Verb::Stop => ("lxc-stop", &["--timeout", "1"]),
            Verb::Remove => ("lxc-destroy", &["--force"]),
            Verb::RestartAlways => return None,
        };
        Some(Self::tool(tool, home, words))
    }

    fn remove(&self, home: &Home) {
        // It may have gone, or never have come.
        let _ = run(&mut Self::tool("lxc-stop", home, &["--kill"]));
    }
}
