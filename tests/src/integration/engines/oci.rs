//! runc, crun and youki: a bundle and an id.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    super::{
        cgroups::within,
        dump,
        process::{LONG, run},
        service::property,
    },
    engine::{self, Ending, Engine, Home, Kind, PROGRAM, PreDump, SLICE, State, Verb, quietly},
};

/// A runtime for OCI's bundles.
pub(super) struct Oci(&'static str);

impl Oci {
    pub(super) const RUNC: Self = Self("runc");
    pub(super) const CRUN: Self = Self("crun");
    pub(super) const YOUKI: Self = Self("youki");

    pub(super) const fn name(&self) -> &'static str {
        self.0
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = engine::command(self.0, &["--systemd-cgroup"]);
        command.args(words);
        // youki would end its messages with that.
        command.env("RUST_BACKTRACE", "0");
        command
    }

    /// The runtime that restores its images. youki cannot, and it writes its images for crun.
    fn restorer(&self) -> Self {
        match self.0 {
            "youki" => Self::CRUN,
            name => Self(name),
        }
    }

    /// What `spec` makes, for this program, without a network of its own.
    fn configure(&self, home: &Home) -> Result<()> {
        let spec = run(engine::command(self.0, &["spec"]).current_dir(&home.dir))?;
        spec.expect(0)?;
        let path = home.dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(PROGRAM);
        config["root"]["readonly"] = false.into();
        let scope = format!("{SLICE}:{}:{}", self.0, home.id);
        config["linux"]["cgroupsPath"] = scope.into();
        config["linux"]["namespaces"]
            .as_array_mut()
            .context("namespaces")?
            .retain(|namespace| namespace["type"] != "network");
        Ok(fs::write(&path, serde_json::to_vec(&config)?)?)
    }
}

impl Engine for Oci {
    fn title(&self) -> &'static str {
        self.0
    }

    fn versions(&self) -> Result<String> {
        engine::version(self.0)
    }

    /// The guest's youki is built for v2 only, and bookworm also has hybrid guests.
    fn is_in(&self, release: &str) -> bool {
        self.0 != "youki" || release != "bookworm"
    }

    /// Some builds of crun cannot.
    fn can_checkpoint(&self) -> Result<bool> {
        let output = run(&mut engine::command(self.0, &["--version"]))?.stdout;
        Ok(self.0 != "crun" || output.contains("+CRIU"))
    }

    /// crun has CRIU seize running tasks for it.
    fn pre_dump(&self) -> PreDump {
        match self.0 {
            "crun" => PreDump::Running,
            "youki" => PreDump::Missing,
            _ => PreDump::Frozen,
        }
    }

    /// youki names no freezer to CRIU.
    fn freezes(&self) -> bool {
        self.0 != "youki"
    }

    fn ending(&self) -> Ending {
        match self.0 {
            "youki" => Ending::OneWay,
            _ => Ending::Restorable,
        }
    }

    fn start(&self, home: &Home) -> Result<()> {
        self.configure(home)?;
        let mut command = self.command(&["run", "-d", "--bundle"]);
        quietly(command.arg(&home.dir).arg(&home.id))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        // youki 0.7 spells it so.
        let verb = match self.0 {
            "youki" => "checkpointt",
            _ => "checkpoint",
        };
        let mut command = self.command(&[verb]);
        let work = home.image(&format!("{name}.work"));
        fs::create_dir_all(&work)?;
        command.arg("--image-path").arg(home.image(name));
        command.arg("--work-path").arg(work);
        command.args(kind.pre_dump.then_some("--pre-dump"));
        if let Some(parent) = kind.parent {
            command.arg("--parent-path").arg(format!("../{parent}"));
        }
        command.args(kind.leave_running.then_some("--leave-running"));
        command.arg(&home.id);
        Ok(command)
    }

    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        // A scope of that name must not be there any more.
        let scope = format!("{}-{}.scope", self.0, home.id);
        within(LONG, "systemd forgets the scope", || {
            Ok(property(&scope, "LoadState")? == "not-found")
        })?;
        let work = home.image("restore.work");
        fs::create_dir_all(&work)?;
        let mut command = self.restorer().command(&["restore", "-d", "--bundle"]);
        command.arg(&home.dir);
        command.arg("--image-path").arg(home.image(name));
        command.arg("--work-path").arg(&work).arg(&home.id);
        quietly(&mut command).with_context(|| dump::log(&work, "restore.log"))
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let mut command = self.command(&["state", &home.id]);
        engine::inspect(&mut command, ["/status", "/pid"])
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let id = &*home.id;
        Some(match verb {
            Verb::Pause => self.command(&["pause", id]),
            Verb::Resume => self.command(&["resume", id]),
            Verb::Exec => self.command(&["exec", id, "/guest-tool", "--help"]),
            Verb::Update => self.command(&["update", "--memory", "300000000", id]),
            Verb::Kill => self.command(&["kill", id, "KILL"]),
            Verb::Stop => self.command(&["kill", id, "TERM"]),
            Verb::Remove => self.command(&["delete", "-f", id]),
            Verb::RestartAlways => return None,
        })
    }

    fn remove(&self, home: &Home) {
        for runtime in [self.0, self.restorer().0].map(Self) {
            for verb in [&["kill", "--all"], &["delete", "-f"]] {
                // It may have gone, or never have come.
                let _ = run(runtime.command(verb).arg(&home.id));
            }
        }
    }
}
