//! cgroups for one test each, and workloads in them.

use std::{
    ffi::OsStr,
    fs,
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::LONG;
pub(super) use super::PATIENCE;

/// Waits until something holds.
pub(super) fn eventually(what: &str, holds: impl FnMut() -> Result<bool>) -> Result<()> {
    within(PATIENCE, what, holds)
}

/// Waits so long until something holds.
pub(super) fn within(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < limit, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A name that no other test of this boot has.
pub(super) fn unique() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!(
        "fg{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// One of the two cgroup hierarchies that have a freezer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hierarchy {
    V1,
    V2,
}

impl Hierarchy {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// That of a hybrid host's other hierarchy.
    pub(super) fn other(self) -> Self {
        match self {
            Self::V1 => Self::V2,
            Self::V2 => Self::V1,
        }
    }

    pub(super) fn root(self) -> &'static Path {
        const UNIFIED: &str = "/sys/fs/cgroup/unified";
        Path::new(match self {
            Self::V1 => "/sys/fs/cgroup/freezer",
            Self::V2 if Path::new(UNIFIED).exists() => UNIFIED,
            Self::V2 => "/sys/fs/cgroup",
        })
    }

    pub(super) fn is_here(self) -> bool {
        self.root()
            .join(match self {
                Self::V1 => "tasks",
                Self::V2 => "cgroup.controllers",
            })
            .exists()
    }

    /// The file that freezes.
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::V1 => "freezer.state",
            Self::V2 => "cgroup.freeze",
        }
    }

    pub(super) fn frozen(self) -> &'static str {
        match self {
            Self::V1 => "FROZEN",
            Self::V2 => "1",
        }
    }

    pub(super) fn thawed(self) -> &'static str {
        match self {
            Self::V1 => "THAWED",
            Self::V2 => "0",
        }
    }

    /// Whether there is `cgroup.kill`.
    pub(super) fn has_kill(self) -> bool {
        self == Self::V2
    }

    /// The files that take pids.
    pub(super) fn moves(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["tasks", "cgroup.procs"],
            Self::V2 => &["cgroup.procs", "cgroup.threads"],
        }
    }
}

/// A cgroup that goes, with all that is in it, when the test ends.
pub(super) struct Cgroup {
    pub(super) hierarchy: Hierarchy,
    pub(super) path: PathBuf,
}

impl Cgroup {
    pub(super) fn new(hierarchy: Hierarchy) -> Result<Self> {
        Self::at(hierarchy, hierarchy.root().join(unique()))
    }

    /// One whose name is no text.
    pub(super) fn without_text(hierarchy: Hierarchy) -> Result<Self> {
        let name = [unique().as_bytes(), b" \xff"].concat();
        Self::at(hierarchy, hierarchy.root().join(OsStr::from_bytes(&name)))
    }

    pub(super) fn child(&self, name: &str) -> Result<Self> {
        Self::at(self.hierarchy, self.path.join(name))
    }

    fn at(hierarchy: Hierarchy, path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { hierarchy, path })
    }

    pub(super) fn text(&self) -> String {
        self.path.display().to_string()
    }

    /// The path of its freezer file.
    pub(super) fn freezer(&self) -> PathBuf {
        self.path.join(self.hierarchy.file())
    }

    pub(super) fn write(&self, file: &str, value: &str) -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(self.path.join(file))?;
        file.write_all(value.as_bytes())
    }

    pub(super) fn freeze(&self) -> Result<()> {
        self.write(self.hierarchy.file(), self.hierarchy.frozen())
            .with_context(|| format!("freeze {}", self.path.display()))?;
        eventually("FROZEN", || Ok(self.state()? == "FROZEN"))
    }

    pub(super) fn thaw(&self) -> Result<()> {
        self.write(self.hierarchy.file(), self.hierarchy.thawed())
            .with_context(|| format!("thaw {}", self.path.display()))
    }

    /// THAWED, FREEZING or FROZEN, from the kernel and not from our program.
    pub(super) fn state(&self) -> Result<String> {
        if self.hierarchy == Hierarchy::V1 {
            return Ok(fs::read_to_string(self.freezer())?.trim().to_owned());
        }
        let events = fs::read_to_string(self.path.join("cgroup.events"))?;
        let frozen = events.lines().any(|line| line == "frozen 1");
        let asked = fs::read_to_string(self.freezer())?.trim() == "1";
        Ok(if frozen {
            "FROZEN"
        } else if asked {
            "FREEZING"
        } else {
            "THAWED"
        }
        .to_owned())
    }

    pub(super) fn pids(&self) -> Result<Vec<i32>> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))?;
        text.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// Ends every task in it and waits until it is empty.
    pub(super) fn kill_all(&self) -> Result<()> {
        self.thaw()?;
        eventually("an empty cgroup", || {
            for pid in self.pids()? {
                // It may have ended already.
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            Ok(self.pids()?.is_empty())
        })
    }

    /// That an outsider's write has the effect that it should have.
    #[track_caller]
    pub(super) fn expect_refused(&self, file: &str, value: &str) -> Result<()> {
        match self.write(file, value) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
            other => bail!(
                "writing {value} to {}/{file}: {other:?}, not EBUSY",
                self.text()
            ),
        }
    }

    #[track_caller]
    pub(super) fn expect_allowed(&self, file: &str, value: &str) -> Result<()> {
        let what = || format!("write {value} to {}/{file}", self.text());
        self.write(file, value).with_context(what)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.path.exists() {
            return;
        }
        let clean = self
            .kill_all()
            .and_then(|()| eventually("rmdir", || Ok(fs::remove_dir(&self.path).is_ok())));
        if clean.is_err() {
            // A test has failed and left a guard: the next ones must not suffer.
            let _ = Command::new("freezer-guard")
                .arg("end")
                .arg(&self.path)
                .arg("--force")
                .output();
            let _ = self.kill_all();
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// A tree of counting processes.
pub(super) struct Workload {
    pub(super) pid: i32,
    counters: Counters,
}

impl Workload {
    pub(super) fn start(cgroups: &[&Cgroup], children: usize) -> Result<Self> {
        Self::start_with(cgroups, children, 10)
    }

    /// One of very many processes, which count every few seconds.
    pub(super) fn start_slow(cgroup: &Cgroup, children: usize) -> Result<Self> {
        Self::start_with(&[cgroup], children, 5000)
    }

    fn start_with(cgroups: &[&Cgroup], children: usize, pause_ms: u64) -> Result<Self> {
        let dir = super::scratch("workload");
        let mut command = Command::new("guest-tool");
        command
            .arg("workload")
            .arg(&dir)
            .args(["--processes", &children.to_string()])
            .args(["--pause-ms", &pause_ms.to_string()]);
        for cgroup in cgroups {
            command.arg("--cgroup").arg(&cgroup.path);
        }
        let output = command.output().context("run guest-tool")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "guest-tool workload: {error}");
        let pid = String::from_utf8(output.stdout)?.trim().parse()?;
        Ok(Self {
            pid,
            counters: Counters {
                dir,
                processes: children + 1,
            },
        })
    }

    /// See [`Counters::read`].
    pub(super) fn counters(&self) -> Result<Vec<u64>> {
        self.counters.read()
    }

    /// See [`Counters::expect_counting_from`].
    pub(super) fn expect_counting_from(&self, since: &[u64]) -> Result<()> {
        self.counters.expect_counting_from(since)
    }

    /// Waits until each process has counted on.
    pub(super) fn expect_counting(&self) -> Result<()> {
        self.expect_counting_from(&[])
    }
}

/// What the processes of `guest-tool` count, a file for each.
pub(super) struct Counters {
    pub(super) dir: PathBuf,
    pub(super) processes: usize,
}

impl Counters {
    /// Where each process has counted to.
    pub(super) fn read(&self) -> Result<Vec<u64>> {
        (0..self.processes)
            .map(|number| Ok(fs::read_to_string(self.dir.join(number.to_string()))?.parse()?))
            .collect()
    }

    /// Waits until each process has counted on, from `since` and not from 0.
    pub(super) fn expect_counting_from(&self, since: &[u64]) -> Result<()> {
        let before = self.read()?;
        // On a loaded machine a restored container may take its time.
        within(LONG, "every process counts", || {
            let now = self.read()?;
            ensure!(
                now.iter().zip(since).all(|(now, since)| now >= since),
                "it counts anew: {now:?}"
            );
            Ok(now.iter().zip(&before).all(|(now, before)| now != before)
                && now.iter().zip(since).all(|(now, since)| now > since))
        })
        .with_context(|| format!("since {since:?}, before {before:?}, now {:?}", self.read()))
    }
}
