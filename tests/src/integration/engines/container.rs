//! A container of one of the engines.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::{
    super::{
        cgroups::{Counters, Hierarchy, within},
        process::{LONG, run},
    },
    Way,
    engine::{Engine, Home, Kind, PROCESSES, PreDump, State, Verb},
    image,
};

/// A container whose processes count.
pub(super) struct Container {
    pub(super) engine: &'static dyn Engine,
    pub(super) hierarchy: Hierarchy,
    home: Home,
}

impl Container {
    pub(super) fn start(engine: &'static dyn Engine, hierarchy: Hierarchy) -> Result<Self> {
        engine.prepare()?;
        let container = Self {
            engine,
            hierarchy,
            home: Home::new(),
        };
        image::make_root(&container.home.rootfs())?;
        engine.start(&container.home)?;
        within(LONG, "the container counts", || {
            Ok(container
                .counters()
                .read()
                .is_ok_and(|all| all.iter().all(|n| *n > 0)))
        })?;
        Ok(container)
    }

    pub(super) fn id(&self) -> &str {
        &self.home.id
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            dir: self.engine.counters(&self.home),
            processes: PROCESSES,
        }
    }

    /// Returns the engine's command for this, if it has one.
    pub(super) fn verb(&self, verb: Verb) -> Option<Command> {
        self.engine.verb(&self.home, verb)
    }

    /// Does this, which has to work.
    pub(super) fn expect(&self, verb: Verb) -> Result<()> {
        let mut command = self.verb(verb).context("it has no such command")?;
        run(&mut command)?.expect(0)?;
        Ok(())
    }

    /// Returns the command that makes a checkpoint in this way.
    pub(super) fn checkpoint(&self, way: Way, name: &str, kind: Kind<'_>) -> Result<Command> {
        if way == Way::Run
            && let Some(command) = self.engine.guarded(&self.home, name, kind)?
        {
            return Ok(command);
        }
        let command = self.engine.checkpoint(&self.home, name, kind)?;
        if way != Way::Run {
            return Ok(command);
        }
        let mut run = Command::new("freezer-guard");
        let pid = self.pid()?.to_string();
        run.args(["run", "--freeze", "--pid", &pid]);
        let seizes_running = kind.pre_dump && self.engine.pre_dump() == PreDump::Running;
        if seizes_running || !self.engine.freezes() {
            run.arg("--thaw");
        }
        run.arg("--").arg(command.get_program());
        run.args(command.get_args());
        Ok(run)
    }

    /// Returns the directory of CRIU's log of a checkpoint by runc or crun.
    pub(super) fn work_dir(&self, name: &str) -> PathBuf {
        self.home.image(&format!("{name}.work"))
    }

    pub(super) fn restore(&self, name: &str) -> Result<()> {
        self.engine.restore(&self.home, name)
    }

    /// Returns what the engine says of it, if the engine still knows it.
    pub(super) fn state(&self) -> Result<Option<State>> {
        Ok(self.engine.inspect(&self.home)?.map(|(state, _)| state))
    }

    /// Returns its first process.
    pub(super) fn pid(&self) -> Result<i32> {
        let (_, pid) = self
            .engine
            .inspect(&self.home)?
            .context("it is not there")?;
        Ok(pid)
    }

    /// Returns the cgroup of its first process.
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

    /// Returns its unit and the slice of that, if systemd knows them.
    pub(super) fn units(&self) -> Result<Option<(String, &'static str)>> {
        let Some(slice) = self.engine.slice() else {
            return Ok(None);
        };
        let cgroup = self.cgroup()?;
        let unit = cgroup.iter().find_map(|part| {
            let part = part.to_str()?;
            let is_unit = part.ends_with(".scope") || part.ends_with(".service");
            is_unit.then(|| part.to_owned())
        });
        let unit = unit.with_context(|| format!("no unit in {}", cgroup.display()))?;
        Ok(Some((unit, slice)))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.engine.remove(&self.home);
        let _ = fs::remove_dir_all(&self.home.dir);
    }
}
