//! The trials, one module for each part of the promise; one list for the
//! layout that this guest has.

mod automatic;
mod cgroups;
mod checkpoint;
mod doctor;
mod dump;
mod engines;
mod events;
mod failures;
mod holders;
mod large;
mod levels;
mod lifecycle;
mod misuse;
mod outsiders;
mod package;
mod parallel;
mod paths;
mod places;
mod process;
mod refuse;
mod service;
mod status;
mod storms;
mod varlink;
mod verify;
mod violations;

use std::{
    fs,
    path::Path,
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::config::{CONFIG_PATH, Config, Image, Suite};
use cgroups::{Cgroup, Hierarchy};
use process::Held;

/// Runs the trials that apply here, one at a time.
pub fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // The other end of the serial port is a program.
    arguments.color = Some(libtest_mimic::ColorSetting::Never);
    match list() {
        Ok((label, trials)) => {
            println!("here: {label}");
            libtest_mimic::run(&arguments, trials).exit_code()
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
    for hierarchy in [Hierarchy::V1, Hierarchy::V2] {
        if !hierarchy.is_here() {
            continue;
        }
        let mut list = List {
            config: &config,
            hierarchy,
            beside_another: false,
            with_service: false,
            module: "",
            trials: &mut trials,
        };
        if is_locked_down()? {
            list.module("doctor", failures::list_locked_down);
            continue;
        }
        if matches!(config.suite, Suite::Engines | Suite::EnginesCore) {
            list.beside_another = true;
            list.module("checkpoint", checkpoint::list);
            list.module("large", large::list);
            list.beside_another = false;
            list.module("engines", engines::list);
            continue;
        }
        if config.image == Image::Systemd && config.suite != Suite::Levels {
            list.with_service = true;
            list.module("package", package::list);
            list.module("service", service::list);
            list.module("automatic", automatic::list);
            list.module("varlink", varlink::list);
            list.module("package", package::list_end);
            list.with_service = false;
        }
        if config.suite == Suite::Service {
            continue;
        }
        list.module("levels", levels::list);
        list.module("doctor", doctor::list);
        if config.suite == Suite::Levels {
            continue;
        }
        list.beside_another = true;
        list.module("dump", dump::list);
        list.module("refuse", refuse::list);
        list.module("places", places::list);
        list.module("holders", holders::list);
        list.module("violations", violations::list);
        if config.suite == Suite::Core {
            continue;
        }
        list.beside_another = false;
        list.module("failures", failures::list);
        list.beside_another = true;
        list.module("misuse", misuse::list);
        list.module("paths", paths::list);
        list.module("status", status::list);
        list.module("verify", verify::list);
        list.module("checkpoint", checkpoint::list);
        // They take minutes, and no unit of systemd's plays a part in them.
        if config.image == Image::Initramfs {
            list.module("outsiders", outsiders::list);
            list.module("storms", storms::list);
        }
        list.beside_another = false;
        list.module("parallel", parallel::list);
        list.module("lifecycle", lifecycle::list);
        list.module("events", events::list);
    }
    Ok((label, trials))
}

/// Whether `bpf` is among the active security modules.
fn has_bpf() -> Result<bool> {
    let active = fs::read_to_string("/sys/kernel/security/lsm").context("read the LSM list")?;
    Ok(active.trim().split(',').any(|name| name == "bpf"))
}

/// Whether programs may not read the kernel's memory.
fn is_locked_down() -> Result<bool> {
    let modes = fs::read_to_string("/sys/kernel/security/lockdown").context("read lockdown")?;
    Ok(modes.contains("[confidentiality]"))
}

/// What the modules put their trials into.
struct List<'a> {
    config: &'a Config,
    hierarchy: Hierarchy,
    /// Whether an unrelated guard is held meanwhile. It keeps the BPF programs
    /// loaded, which takes seconds in an emulated guest, and must not matter.
    beside_another: bool,
    /// Whether the host's service is there.
    with_service: bool,
    module: &'static str,
    trials: &'a mut Vec<Trial>,
}

impl List<'_> {
    fn module(&mut self, name: &'static str, list: fn(&mut Self)) {
        self.module = name;
        list(self);
    }

    fn add(&mut self, name: &str, test: impl Fn(Hierarchy) -> Result<()> + Send + 'static) {
        let (hierarchy, beside_another) = (self.hierarchy, self.beside_another);
        let with_service = self.with_service;
        let name = format!("{}::{}::{name}", hierarchy.name(), self.module);
        let run = move || {
            hold_another(beside_another.then_some(hierarchy))
                .and_then(|()| match with_service {
                    true => package::ensure_installed(),
                    false => Ok(()),
                })
                .and_then(|()| test(hierarchy))
                .map_err(|error| Failed::from(format!("{error:?}")))
        };
        self.trials
            .push(Trial::test(name, run).with_kind(self.config.label()));
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
