//! Units that systemd stops while a guard refuses that: a second instance does not start, and the stop is
//! finished at the end of the guard.

use std::{fs, thread, time::Duration};

use anyhow::{Result, ensure};

use super::{
    List,
    cgroups::{Hierarchy, unique},
    configured::Configured,
    process::{Held, guards},
    service::{eventually, journal, property, systemctl},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("stop_is_finished", finished);
    list.add("stop_is_not_finished_if_switched_off", off);
}

/// A unit with a file, which can be started again.
pub(super) struct Permanent(String);

impl Permanent {
    fn new() -> Result<Self> {
        let unit = Self(format!("{}.service", unique()));
        let text = "[Service]\nExecStart=sleep 100000\nTimeoutStopSec=1\n";
        fs::write(unit.file(), text)?;
        systemctl(&["daemon-reload"])?.expect(0)?;
        systemctl(&["start", &unit.0])?.expect(0)?;
        Ok(unit)
    }

    fn file(&self) -> String {
        format!("/run/systemd/system/{}", self.0)
    }

    fn state(&self) -> Result<String> {
        property(&self.0, "ActiveState")
    }

    pub(super) fn pids(&self) -> Result<Vec<i32>> {
        let cgroup = property(&self.0, "ControlGroup")?;
        if cgroup.is_empty() {
            return Ok(Vec::new());
        }
        let dir = Hierarchy::V2.root().join(cgroup.trim_start_matches('/'));
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        Ok(pids.lines().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Drop for Permanent {
    fn drop(&mut self) {
        let _ = systemctl(&["kill", "-s", "KILL", &self.0]);
        let _ = systemctl(&["stop", &self.0]);
        let _ = fs::remove_file(self.file());
        let _ = systemctl(&["daemon-reload"]);
    }
}

/// Has systemd give the unit up while it is guarded, and fail to start it.
pub(super) fn given_up() -> Result<Permanent> {
    let unit = Permanent::new()?;
    let pids = unit.pids()?;
    let mut command = Held::command(&[]);
    let mut held = Held::start(command.args(["--cgroup", &unit.0]))?;
    held.wait_held()?;
    let _ = systemctl(&["stop", &unit.0])?;
    let state = unit.state()?;
    ensure!(["failed", "inactive"].contains(&&*state), "it is {state}");
    ensure!(unit.pids()? == pids, "its process has ended");
    // Its answer does not matter: no new process comes into the cgroup.
    let _ = systemctl(&["start", &unit.0])?;
    ensure!(
        unit.pids()? == pids,
        "a second instance: {:?}",
        unit.pids()?
    );
    held.release()?.expect(0)?.says("refused")?;
    Ok(unit)
}

fn finished(_: Hierarchy) -> Result<()> {
    let unit = given_up()?;
    eventually("the stop is finished", || Ok(unit.pids()?.is_empty()))?;
    ensure!(journal()?.contains(&format!("killed the remaining processes of {}", unit.0)));
    systemctl(&["start", &unit.0])?.expect(0)?;
    ensure!(unit.state()? == "active", "it is {}", unit.state()?);
    ensure!(unit.pids()?.len() == 1, "{:?}", unit.pids()?);
    Ok(())
}

fn off(_: Hierarchy) -> Result<()> {
    let _configured = Configured::new("[units]\nfinish_stops = false\n")?;
    let unit = given_up()?;
    eventually("the guard has ended", || Ok(guards()?.is_empty()))?;
    thread::sleep(Duration::from_secs(2));
    ensure!(unit.pids()?.len() == 1, "{:?}", unit.pids()?);
    Ok(())
}
