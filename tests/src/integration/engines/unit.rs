//! A service of systemd. To restore it, a new instance of the service runs CRIU, so that systemd
//! supervises the restored tree.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use super::{
    super::{
        cgroups::within,
        dump,
        process::{LONG, run},
        service::property,
    },
    engine::{Engine, Home, Kind, PreDump, SLICE, State, Verb, command, quietly},
    tree::{self, GUARDED},
};

/// A service that `systemd-run` starts.
pub(super) struct Unit;

impl Unit {
    fn name(home: &Home) -> String {
        format!("{}.service", home.id)
    }

    /// Starts it as a new unit with this name.
    fn start(home: &Home, more: &[&str]) -> Command {
        let mut command = command("systemd-run", &["--quiet", "--collect", "--slice", SLICE]);
        command.args(["--unit", &Self::name(home)]);
        // CRIU cannot dump a connection to the journal. A process can join a delegated cgroup.
        for property in [
            "StandardInput=null",
            "StandardOutput=null",
            "StandardError=null",
            "TimeoutStopSec=1",
            "Delegate=yes",
        ] {
            command.args(["--property", property]);
        }
        command.args(more);
        command
    }
}

impl Engine for Unit {
    fn title(&self) -> &'static str {
        "systemd unit"
    }

    fn versions(&self) -> Result<String> {
        tree::versions()
    }

    fn is_in(&self, release: &str) -> bool {
        release != "bookworm"
    }

    fn pre_dump(&self) -> PreDump {
        PreDump::Frozen
    }

    fn supervisors(&self) -> &'static [&'static str] {
        &["systemd"]
    }

    fn guarded_by(&self) -> &'static str {
        GUARDED
    }

    fn start(&self, home: &Home) -> Result<()> {
        quietly(Self::start(home, &[]).args(tree::program(home)?))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        let (_, pid) = self.inspect(home)?.context("it is not there")?;
        tree::by_criu(home, name, kind, pid, &[])
    }

    fn guarded(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Option<Command>> {
        tree::by_us(home, name, kind, ["--unit", &Self::name(home)], &[]).map(Some)
    }

    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        let unit = Self::name(home);
        within(LONG, "systemd forgets the unit", || {
            Ok(property(&unit, "LoadState")? == "not-found")
        })?;
        let file = home.dir.join("pid");
        let _ = fs::remove_file(&file);
        let file = file.to_str().context("a plain path")?;
        let property = format!("PIDFile={file}");
        let mut command = Self::start(home, &["-p", "Type=forking", "-p", &property]);
        let image = home.image(name);
        let restore = tree::restore(&image);
        // It guards the unit's cgroup, so it must not be in that.
        if tree::is_ours(&image) {
            command.args(["systemd-run", "--quiet", "--scope"]);
        }
        command.arg(restore.get_program()).args(restore.get_args());
        command.args(["--pidfile", file]);
        quietly(&mut command).with_context(|| dump::log(&image, "restore.log"))
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let unit = Self::name(home);
        if property(&unit, "LoadState")? == "not-found" {
            return Ok(None);
        }
        let state = match &*property(&unit, "ActiveState")? {
            "active" => State::of(&property(&unit, "FreezerState")?),
            "inactive" | "failed" => State::Ended,
            other => State::Other(other.to_owned()),
        };
        Ok(Some((state, property(&unit, "MainPID")?.parse()?)))
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let unit = &*Self::name(home);
        Some(match verb {
            Verb::Pause => command("systemctl", &["freeze", unit]),
            Verb::Resume => command("systemctl", &["thaw", unit]),
            // systemd moves a process into the unit.
            Verb::Exec => command("bash", &["-c", &tree::join("--system", unit)]),
            Verb::Update => command(
                "systemctl",
                &["set-property", "--runtime", unit, "MemoryMax=300000000"],
            ),
            Verb::Kill => command("systemctl", &["kill", "--signal", "SIGKILL", unit]),
            Verb::Stop => command("systemctl", &["stop", unit]),
            Verb::Remove | Verb::RestartAlways => return None,
        })
    }

    fn remove(&self, home: &Home) {
        let unit = Self::name(home);
        for verb in [
            &["kill", "--signal", "SIGKILL"][..],
            &["stop"],
            &["reset-failed"],
        ] {
            // It may have gone, or never have come.
            let _ = run(command("systemctl", verb).arg(&unit));
        }
    }
}
