//! A service of systemd. To restore it, a new instance of the service runs CRIU, so that systemd
//! supervises the restored tree.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{
    super::service::property,
    engine::{Engine, Home, Kind, PreDump, State, Verb, command, quietly},
    tree::{self, GUARDED},
};

/// A service that `systemd-run` starts.
pub(super) struct Unit;

impl Unit {
    fn name(home: &Home) -> String {
        format!("{}.service", home.id)
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
        quietly(tree::service(&Self::name(home), &[]).args(tree::program(home)?))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        let (_, pid) = self.inspect(home)?.context("it is not there")?;
        tree::by_criu(home, name, kind, pid, &[])
    }

    fn guarded(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Option<Command>> {
        tree::by_us(home, name, kind, ["--unit", &Self::name(home)], &[]).map(Some)
    }

    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        // It guards the unit's cgroup, so it must not be in that.
        let before: &[_] = match tree::is_ours(&home.image(name)) {
            true => &["systemd-run", "--quiet", "--scope"],
            false => &[],
        };
        tree::restore_as_service(home, &Self::name(home), name, before, &[])
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let unit = Self::name(home);
        let Some(state) = tree::state(|name| property(&unit, name))? else {
            return Ok(None);
        };
        Ok(Some((state, property(&unit, "MainPID")?.parse()?)))
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let unit = Self::name(home);
        match verb {
            // systemd moves a process into the unit.
            Verb::Exec => Some(command("bash", &["-c", &tree::join("--system", &unit)])),
            verb => tree::verb(tree::systemctl, &unit, verb),
        }
    }

    fn remove(&self, home: &Home) {
        tree::remove(tree::systemctl, &Self::name(home));
    }
}
