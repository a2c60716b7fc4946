//! A scope of a user's own systemd. Root dumps its tree. To restore it, the user starts a scope of
//! the same name, and root has CRIU restore the tree into that.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::{
    super::{
        cgroups::{Hierarchy, within},
        dump,
        process::{LONG, run},
    },
    engine::{Engine, Home, Kind, PROCESSES, PROGRAM, PreDump, State, Verb, quietly},
    tree::{self, GUARDED},
    user::{self, user},
};

/// A scope that `systemd-run --user` starts.
pub(super) struct Session;

impl Session {
    fn name(home: &Home) -> String {
        format!("{}.scope", home.id)
    }

    /// Starts a program in the background, in a new scope and a session of its own.
    fn start(home: &Home, program: &[&str]) -> Result<()> {
        let words = ["--user", "--scope", "--quiet", "--collect"];
        let mut command = user("systemd-run", &words);
        command.args(["--unit", &Self::name(home)]);
        for property in ["TimeoutStopSec=1", "Delegate=yes"] {
            command.args(["--property", property]);
        }
        // CRIU dumps no file of another test's.
        let script = "exec \"$@\" 2> /dev/null";
        command.args(["setsid", "--fork", "sh", "-c", script, "sh"]);
        quietly(command.args(program))
    }

    fn property(home: &Home, name: &str) -> Result<String> {
        let unit = Self::name(home);
        let shown = run(&mut user::own_systemctl(&[
            "show",
            "--value",
            "--property",
            name,
            &unit,
        ]))?;
        Ok(shown.expect(0)?.stdout.trim().to_owned())
    }

    /// Its cgroup and the processes in that.
    fn processes(home: &Home) -> Result<(PathBuf, Vec<i32>)> {
        let path = Self::property(home, "ControlGroup")?;
        let cgroup = Hierarchy::V2.root().join(path.trim_start_matches('/'));
        let pids = fs::read_to_string(cgroup.join("cgroup.procs"))?;
        let pids = pids.lines().map(str::parse).collect::<Result<_, _>>()?;
        Ok((cgroup, pids))
    }
}

impl Engine for Session {
    fn title(&self) -> &'static str {
        "user's scope"
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

    fn guarded_by(&self) -> &'static str {
        GUARDED
    }

    /// The host's systemd knows the user's manager and the slice of that.
    fn slice(&self) -> Option<&'static str> {
        Some(user::SLICE)
    }

    fn prepare(&self) -> Result<()> {
        user::prepare()
    }

    fn start(&self, home: &Home) -> Result<()> {
        let dir = self.counters(home);
        user::own(&dir)?;
        let dir = dir.to_str().context("a plain path")?;
        let [_, verb, _, more @ ..] = PROGRAM;
        let program = [&["/guest/bin/guest-tool", verb, dir], &more[..]];
        Self::start(home, &program.concat())
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        let (_, pid) = self.inspect(home)?.context("it is not there")?;
        tree::by_criu(home, name, kind, pid, &[])
    }

    fn guarded(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Option<Command>> {
        let (cgroup, _) = Self::processes(home)?;
        let cgroup = cgroup.to_str().context("a plain path")?;
        tree::by_us(home, name, kind, ["--cgroup", cgroup], &[]).map(Some)
    }

    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        within(LONG, "the user's systemd forgets the scope", || {
            Ok(Self::property(home, "LoadState")? == "not-found")
        })?;
        // The scope lasts as long as a process is in it.
        Self::start(home, &["sleep", "1000"])?;
        within(LONG, "the scope is there", || {
            Ok(Self::property(home, "ActiveState")? == "active")
        })?;
        let (_, first) = Self::processes(home)?;
        let image = home.image(name);
        quietly(&mut tree::restore(&image)).with_context(|| dump::log(&image, "restore.log"))?;
        for pid in first {
            let _ = run(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
        }
        within(LONG, "only the tree is in the scope", || {
            Ok(Self::processes(home)?.1.len() == PROCESSES)
        })
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        // A manager that has ended knows nothing any more.
        if !user::is_managed()? {
            return Ok(None);
        }
        let state = match tree::state(|name| Self::property(home, name))? {
            Some(State::Ended) => return Ok(Some((State::Ended, 0))),
            Some(state) => state,
            None => return Ok(None),
        };
        // The root of the tree came first.
        let pid = Self::processes(home)?.1.into_iter().min();
        Ok(Some((state, pid.unwrap_or(0))))
    }

    fn counters(&self, home: &Home) -> PathBuf {
        user::home().join(&home.id)
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let unit = Self::name(home);
        match verb {
            Verb::Exec => Some(user("bash", &["-c", &tree::join("--user", &unit)])),
            verb => tree::verb(user::own_systemctl, &unit, verb),
        }
    }

    fn remove(&self, home: &Home) {
        tree::remove(user::own_systemctl, &Self::name(home));
        let _ = fs::remove_dir_all(self.counters(home));
    }
}
