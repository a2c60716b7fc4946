//! podman, with each of the two runtimes. It keeps the images of checkpoints itself.

use std::process::Command;

use anyhow::Result;

use super::{
    super::process::run,
    engine::{self, Engine, Home, Kind, PROGRAM, PreDump, State, Verb, quietly},
    oci::Oci,
};

/// podman with one runtime.
pub(super) struct Podman {
    runtime: Oci,
    title: &'static str,
}

impl Podman {
    pub(super) const WITH_RUNC: Self = Self {
        runtime: Oci::RUNC,
        title: "podman with runc",
    };
    pub(super) const WITH_CRUN: Self = Self {
        runtime: Oci::CRUN,
        title: "podman with crun",
    };

    fn command(&self, words: &[&str]) -> Command {
        let mut command = engine::command("podman", &["--runtime", self.runtime.name()]);
        command.args(words);
        command
    }
}

impl Engine for Podman {
    fn title(&self) -> &'static str {
        self.title
    }

    fn versions(&self) -> Result<String> {
        let runtime = self.runtime.versions()?;
        Ok(format!("{}, {runtime}", engine::version("podman")?))
    }

    fn can_checkpoint(&self) -> Result<bool> {
        self.runtime.can_checkpoint()
    }

    fn pre_dump(&self) -> PreDump {
        self.runtime.pre_dump()
    }

    fn slice(&self) -> Option<&'static str> {
        Some("machine.slice")
    }

    fn start(&self, home: &Home) -> Result<()> {
        let mut command = self.command(&["run", "-d", "--network", "host", "--name", &home.id]);
        quietly(command.arg("--rootfs").arg(home.rootfs()).args(PROGRAM))
    }

    fn checkpoint(&self, home: &Home, _: &str, kind: Kind<'_>) -> Result<Command> {
        let mut command = self.command(&["container", "checkpoint"]);
        command.args(kind.pre_dump.then_some("--pre-checkpoint"));
        command.args(kind.parent.map(|_| "--with-previous"));
        command.args(kind.leave_running.then_some("--leave-running"));
        command.arg(&home.id);
        Ok(command)
    }

    fn restore(&self, home: &Home, _: &str) -> Result<()> {
        quietly(&mut self.command(&["container", "restore", &home.id]))
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let mut command = self.command(&["container", "inspect", &home.id]);
        engine::inspect(&mut command, ["/0/State/Status", "/0/State/Pid"])
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let id = &*home.id;
        Some(match verb {
            Verb::Pause => self.command(&["pause", id]),
            Verb::Resume => self.command(&["unpause", id]),
            Verb::Exec => self.command(&["exec", id, "/guest-tool", "--help"]),
            Verb::Update => self.command(&["update", id, "--memory", "300m"]),
            Verb::Kill => self.command(&["kill", id]),
            Verb::Stop => self.command(&["stop", "-t", "1", id]),
            Verb::Remove => self.command(&["rm", "-f", "-t", "1", id]),
            // podman 4.3 has no command for that.
            Verb::RestartAlways => return None,
        })
    }

    fn remove(&self, home: &Home) {
        for verb in [&["kill"][..], &["rm", "-f", "-t", "0"]] {
            // It may have gone, or never have come.
            let _ = run(self.command(verb).arg(&home.id));
        }
    }
}
