//! The trials, one module for each part of the promise. `table` assigns them to suites.

mod authority;
mod automatic;
mod bench;
mod cgroups;
mod checkpoint;
mod configured;
mod doctor;
mod dump;
mod engines;
mod events;
mod failures;
mod holders;
mod hybrid;
mod kernel_log;
mod large;
mod levels;
mod lifecycle;
mod metrics;
mod misuse;
mod mounts;
mod outsiders;
mod package;
mod parallel;
mod paths;
mod places;
mod process;
mod proof;
mod refuse;
mod service;
mod shutdown;
mod status;
mod storms;
mod table;
mod units;
mod varlink;
mod verify;
mod violations;

use std::{
    fs,
    path::Path,
    process::ExitCode,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::config::{CONFIG_PATH, Cgroup as Layout, Config, Suite};
use cgroups::{Cgroup, Hierarchy};
use process::Held;

/// How long anything may take that should be quick, on a slow emulated machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// For what takes long: CRIU, or many processes at once.
const LONG: Duration = Duration::from_secs(120);

/// Runs the trials that apply here, one at a time.
pub fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // The other end of the serial port is a program.
    arguments.color = Some(libtest_mimic::ColorSetting::Never);
    match list() {
        Ok((label, trials)) => {
            println!("here: {label}");
            thread::spawn(say_that_it_lives);
            let conclusion = libtest_mimic::run(&arguments, trials);
            print_slowest();
            conclusion.exit_code()
        }
        Err(error) => {
            eprintln!("integration: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<(String, Vec<Trial>)> {
    let bytes = fs::read(CONFIG_PATH).with_context(|| format!("read {CONFIG_PATH}"))?;
    let config: Config = serde_json::from_slice(&bytes)?;
    let label = config.label();
    let mut trials = Vec::new();
    let hierarchies = match config.cgroup {
        Layout::V1 => &[Hierarchy::V1][..],
        Layout::V2 => &[Hierarchy::V2],
        Layout::Hybrid => &[Hierarchy::V1, Hierarchy::V2],
    };
    for hierarchy in hierarchies.iter().copied() {
        ensure!(hierarchy.is_here(), "{} is not mounted", hierarchy.name());
        for part in &table::PARTS {
            if part.suites.contains(&config.suite) {
                (part.list)(&mut List {
                    config: &config,
                    hierarchy,
                    beside: part.beside,
                    module: part.module,
                    trials: &mut trials,
                });
            }
        }
    }
    let suite = config.suite.name();
    ensure!(!trials.is_empty(), "{suite} has no tests for this guest");
    Ok((label, trials))
}

/// Whether `bpf` is among the active security modules.
fn has_bpf() -> Result<bool> {
    let active = fs::read_to_string("/sys/kernel/security/lsm").context("read the LSM list")?;
    Ok(active.trim().split(',').any(|name| name == "bpf"))
}

/// What is there while a trial runs, and must not matter.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    /// An unrelated guard. It keeps the BPF programs loaded, which takes seconds in an
    /// emulated guest.
    AnotherGuard,
    /// The host's service.
    TheService,
}

/// The parts of the tests by the names of their modules, and the suites that have them.
pub fn parts() -> impl Iterator<Item = (&'static str, &'static [Suite])> {
    let parts = table::PARTS.iter();
    parts.map(|part| (part.module, part.suites))
}

/// What the modules put their trials into.
struct List<'a> {
    config: &'a Config,
    hierarchy: Hierarchy,
    beside: Beside,
    module: &'static str,
    trials: &'a mut Vec<Trial>,
}

impl List<'_> {
    /// Whether CRIU can dump in this hierarchy: where both are mounted, 3.17 takes any
    /// freezer for one of v1.
    fn can_dump(&self) -> bool {
        self.hierarchy == Hierarchy::V1 || !self.is_hybrid()
    }

    fn is_hybrid(&self) -> bool {
        self.config.cgroup == Layout::Hybrid
    }

    fn add(&mut self, name: &str, test: impl Fn(Hierarchy) -> Result<()> + Send + 'static) {
        self.add_beside(self.beside, name, test);
    }

    /// For what another guard would matter to.
    fn add_alone(&mut self, name: &str, test: impl Fn(Hierarchy) -> Result<()> + Send + 'static) {
        self.add_beside(Beside::Nothing, name, test);
    }

    fn add_beside(
        &mut self,
        beside: Beside,
        name: &str,
        test: impl Fn(Hierarchy) -> Result<()> + Send + 'static,
    ) {
        let hierarchy = self.hierarchy;
        let name = format!("{}::{}::{name}", hierarchy.name(), self.module);
        let name_of_test = name.clone();
        let run = move || {
            *begun() = Instant::now();
            let result = hold_another((beside == Beside::AnotherGuard).then_some(hierarchy))
                .and_then(|()| match beside {
                    Beside::TheService => package::ensure_installed(),
                    _ => Ok(()),
                })
                .and_then(|()| test(hierarchy))
                .map_err(|error| Failed::from(format!("{error:?}")));
            let took = begun().elapsed();
            if took >= SLOW {
                slow().push((took, name_of_test.clone()));
            }
            result
        };
        self.trials
            .push(Trial::test(name, run).with_kind(self.config.label()));
    }
}

/// The runner shows a test that takes longer.
const SLOW: Duration = Duration::from_secs(5);

/// The slow tests that have ended.
fn slow() -> MutexGuard<'static, Vec<(Duration, String)>> {
    static SLOW_TESTS: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());
    SLOW_TESTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints the slow tests, the slowest first. `xtask` reads the lines.
fn print_slowest() {
    let mut slow = slow();
    slow.sort_by_key(|(took, _)| std::cmp::Reverse(*took));
    for (took, name) in slow.iter() {
        println!("took {:.1} s: {name}", took.as_secs_f64());
    }
}

/// When the trial began that runs.
fn begun() -> MutexGuard<'static, Instant> {
    static BEGUN: LazyLock<Mutex<Instant>> = LazyLock::new(|| Mutex::new(Instant::now()));
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest that is silent for minutes is taken for dead; and a trial that takes longer
/// than this is.
fn say_that_it_lives() {
    const LONGEST: Duration = Duration::from_secs(1200);
    loop {
        thread::sleep(Duration::from_secs(60));
        let elapsed = begun().elapsed();
        if (Duration::from_secs(60)..LONGEST).contains(&elapsed) {
            eprintln!("… for {} s", elapsed.as_secs());
        }
    }
}

/// A guard that no trial is about.
static ANOTHER: Mutex<Option<(Hierarchy, Held, Cgroup)>> = Mutex::new(None);

fn another() -> MutexGuard<'static, Option<(Hierarchy, Held, Cgroup)>> {
    ANOTHER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds such a guard in this hierarchy, or none.
fn hold_another(hierarchy: Option<Hierarchy>) -> Result<()> {
    let mut another = another();
    if another.as_ref().map(|(of, ..)| *of) == hierarchy {
        return Ok(());
    }
    if let Some((_, held, _cgroup)) = another.take() {
        held.release()?.expect(0)?;
    }
    if let Some(hierarchy) = hierarchy {
        let cgroup = Cgroup::new(hierarchy)?;
        let held = Held::new(&[&cgroup])?;
        *another = Some((hierarchy, held, cgroup));
    }
    Ok(())
}

/// The cgroup of the guard that is held beside this trial, if there is one.
fn path_of_another() -> Option<String> {
    another().as_ref().map(|(.., cgroup)| cgroup.text())
}

/// A path for a test's own files, not yet there.
fn scratch(name: &str) -> std::path::PathBuf {
    Path::new("/tmp").join(format!("{}-{name}", cgroups::unique()))
}

/// A new directory for a test's own files.
fn scratch_folder(name: &str) -> Result<std::path::PathBuf> {
    let path = scratch(name);
    fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}
