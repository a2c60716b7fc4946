//! What the host pays: the time that each of some operations takes without us, with
//! programs that do nothing where ours go, and with guards in force.
//!
//! Under QEMU's `-icount shift=0` the clock counts executed instructions, so that the
//! same figures come out each time (`cargo xtask bench`).

mod clock;
mod condition;
mod dump;
mod helper;
mod hold;
mod life;
mod operations;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use freezer_guard::{
    Kind, VERSION,
    cgroup::{self, CreatedCgroups, Version},
    criu, guard, kernel,
};

pub(crate) use clock::Sample;
use condition::{Condition, InForce};
pub(crate) use dump::Dump;
pub(crate) use helper::Part;
use helper::{check_product, count, target};
pub(crate) use hold::hold;
pub(crate) use life::{Found, InMemory, Life, Scale};
use operations::{Operation, Scene};

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Something is loaded, or guarded.
    #[error(
        "freezer-guard is in use on this host, so nothing can be measured without it: \
         wait for guards to end (`freezer-guard status`), and stop the service \
         (`systemctl stop freezer-guard.socket freezer-guard`)"
    )]
    InUse,
    /// The program that is to be measured is another one.
    #[error("this is {VERSION}, and would measure {0:?}: build both together")]
    OtherVersion(String),
    /// There is no such operation.
    #[error("nothing has a name with {wanted:?} in it: there are {}", there.join(", "))]
    NoOperation {
        /// What it was to be.
        wanted: String,
        /// All that there are.
        there: Vec<&'static str>,
    },
    /// Dumps of which size?
    #[error("say how big the processes are to be that are dumped, MiB: --dumps 1,100,500")]
    NoDumps,
    /// A process that is to be dumped would be too big.
    #[error("a process with {mib} MiB does not fit: {available} MiB are available")]
    NoMemory {
        /// What it was to have, MiB.
        mib: usize,
        /// What there is, MiB.
        available: u64,
    },
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
    /// No freezer is mounted.
    #[error("no cgroup freezer is mounted, neither v1 nor v2")]
    NoFreezer,
    /// It has said why.
    #[error("the process for {0} has failed: see above")]
    Helper(String),
    /// Fewer guards are in force than were begun.
    #[error("{held} guards are in force, of {guards} that were begun")]
    Lost {
        /// Those that were begun.
        guards: usize,
        /// Those that are there.
        held: usize,
    },
    /// More are in force than are held.
    #[error("guards are in force that nobody holds: see `freezer-guard status`")]
    Left,
    /// An operation that is measured failed.
    #[error("{operation}")]
    Operation {
        /// What it was.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// About a cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// About a guard.
    #[error(transparent)]
    Guard(#[from] guard::Error),
    /// About CRIU.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// About BPF.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

impl Error {
    /// The exit code: as `freezer-guard` has it, but for CRIU, without which this host cannot be
    /// measured.
    pub(crate) fn exit_code(&self) -> u8 {
        let kind = match self {
            Self::NoOperation { .. } | Self::NoDumps | Self::OtherVersion(_) => Kind::Request,
            Self::InUse => Kind::Busy,
            Self::NoFreezer | Self::NoMemory { .. } | Self::Criu(_) => Kind::Unsupported,
            Self::Cgroup(error) => error.kind(),
            Self::Guard(error) => error.kind(),
            Self::Kernel(error) => error.kind(),
            Self::Stopped
            | Self::Helper(_)
            | Self::Lost { .. }
            | Self::Left
            | Self::Operation { .. } => Kind::Internal,
        };
        kind.exit_code()
    }

    pub(crate) fn operation(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        |source| Self::Operation { operation, source }
    }
}

/// What an operation takes under one condition.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Figure {
    /// What there was of us: `none`, `empty`, `idle`, `watch`, `guards-N`, `after`.
    pub(crate) condition: String,
    /// ns each; under `-icount shift=0` that is instructions.
    #[serde(flatten)]
    pub(crate) sample: Sample,
}

/// What an operation takes.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Row {
    /// `v1` or `v2`: where the guards are.
    pub(crate) hierarchy: &'static str,
    /// The operation.
    pub(crate) operation: &'static str,
    /// Under each condition, in the order in which they were.
    pub(crate) figures: Vec<Figure>,
}

/// What there is to tell.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Report {
    /// What operations take.
    pub(crate) rows: Vec<Row>,
    /// What `run` takes.
    pub(crate) lives: Vec<Life>,
    /// How fast many clients begin and end guards.
    pub(crate) scale: Vec<Scale>,
    /// What is in memory.
    pub(crate) memory: Vec<InMemory>,
    /// What whole dumps take.
    pub(crate) dumps: Vec<Dump>,
}

/// The name of what is measured besides operations: what `run` takes.
pub(crate) const LIFE: &str = "begin and end";
/// The service's memory, and many clients at once.
pub(crate) const SERVICE: &str = "service and memory";
/// CRIU with a guard and without.
pub(crate) const DUMPS: &str = "whole dumps";

/// See [`measure`].
pub(crate) type Progress<'a> = &'a mut dyn FnMut(&str) -> bool;

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How many guards are to be held; one number after the other.
    pub(crate) guards: Vec<usize>,
    /// How many tasks are to be in the cgroup that `run` guards; one number after the
    /// other.
    pub(crate) tasks: Vec<usize>,
    /// How much memory a process is to have, MiB, that CRIU dumps; one number after the
    /// other.
    pub(crate) dumps: Vec<usize>,
    /// Only what has a name that contains one of these; everything when there is none.
    pub(crate) only: Vec<String>,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text))
    }
}

/// Measures, in each hierarchy that has a freezer. `progress` hears what is to be done
/// next, and says whether to do it.
///
/// # Errors
/// When freezer-guard is in use on this host, or something cannot be measured.
pub(crate) fn measure(plan: &Plan, progress: Progress<'_>) -> Result<Report, Error> {
    let operations: Vec<_> = Operation::ALL
        .into_iter()
        .filter(|operation| plan.wants(operation.name()))
        .collect();
    let others = [LIFE, SERVICE, DUMPS];
    let mut there = Operation::ALL.map(Operation::name).to_vec();
    there.extend(others);
    let is_nothing = |text: &&String| !there.iter().any(|name| name.contains(&**text));
    if let Some(wanted) = plan.only.iter().find(is_nothing).cloned() {
        return Err(Error::NoOperation { wanted, there });
    }
    let are_dumps = |text: &String| {
        let mut meant = there.iter().filter(|name| name.contains(text));
        meant.all(|name| *name == DUMPS)
    };
    match (plan.wants(DUMPS), plan.dumps.iter().max()) {
        (true, Some(most)) => dump::check(*most)?,
        (true, None) if plan.only.iter().any(are_dumps) => return Err(Error::NoDumps),
        _ => {}
    }
    check_product()?;
    let mut report = Report::default();
    let mut any = false;
    for (version, mount) in [
        (Version::V1, cgroup::freezer_mount()?),
        (Version::V2, cgroup::unified_mount()?),
    ] {
        if let Some(mount) = mount {
            any = true;
            measure_below(version, &mount, plan, &operations, &mut report, progress)?;
        }
    }
    match any {
        true => Ok(report),
        false => Err(Error::NoFreezer),
    }
}

/// Removes the cgroups and images of a run that was killed.
fn remove_what_is_left(mount: &Path) {
    for path in left_in(mount) {
        let below = fs::read_dir(&path).into_iter().flatten().flatten();
        for path in below.map(|below| below.path()).chain([path]) {
            // A file, or a cgroup that somebody uses: neither goes.
            let _ = fs::remove_dir(path);
        }
    }
    for images in left_in(&env::temp_dir()) {
        // Somebody else's stay.
        let _ = fs::remove_dir_all(images);
    }
}

fn measure_below(
    version: Version,
    mount: &Path,
    plan: &Plan,
    operations: &[Operation],
    report: &mut Report,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let hierarchy = match version {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    remove_what_is_left(mount);
    let mut made = CreatedCgroups::default();
    let top = mount.join(format!("{NAME}{}", std::process::id()));
    let most = plan.guards.iter().copied().max().unwrap_or(1).max(1);
    for number in 0..most {
        made.make(&target(&top, number))?;
    }
    made.make(&elsewhere(&top))?;
    let mut go_on = |what: &str| match progress(&format!("{hierarchy}: {what}")) {
        true => Ok(()),
        false => Err(Error::Stopped),
    };
    // First, while this process is small.
    if !operations.is_empty() {
        let rows = measure_operations(hierarchy, version, plan, operations, &top, &mut go_on)?;
        report.rows.extend(rows);
    }
    if plan.wants(LIFE) {
        for tasks in &plan.tasks {
            let what = format!("{LIFE}, {tasks} tasks");
            let waiting = &mut || go_on(&what);
            let lives = life::measure(hierarchy, *tasks, &target(&top, 0), &top, waiting)?;
            report.lives.extend(lives);
        }
    }
    if plan.wants(SERVICE) {
        let what = format!("{SERVICE}, {most} guards");
        go_on(&what)?;
        let waiting = &mut || go_on(&format!("{what}, {} are held", count(&top)?));
        let (memory, scale) = life::scale(hierarchy, most, &top, waiting)?;
        report.memory.extend(memory);
        report.scale.push(scale);
    }
    if plan.wants(DUMPS) {
        for mib in &plan.dumps {
            let what = format!("{DUMPS}, {mib} MiB");
            let waiting = &mut || go_on(&what);
            let dumps = dump::measure(hierarchy, *mib, &target(&top, 0), &top, waiting)?;
            report.dumps.extend(dumps);
        }
    }
    Ok(())
}

fn measure_operations(
    hierarchy: &'static str,
    version: Version,
    plan: &Plan,
    operations: &[Operation],
    top: &Path,
    go_on: &mut dyn FnMut(&str) -> Result<(), Error>,
) -> Result<Vec<Row>, Error> {
    let mut scene = Scene::new(version, &target(top, 0), &elsewhere(top))?;
    let mut rows: Vec<_> = operations
        .iter()
        .map(|operation| Row {
            hierarchy,
            operation: operation.name(),
            figures: Vec::new(),
        })
        .collect();
    // The first time differs: pages are got, caches are cold.
    for &operation in operations {
        scene.measure(operation, false)?;
    }
    let conditions = [
        Condition::None,
        Condition::Noop,
        Condition::Idle,
        Condition::Watch,
    ]
    .into_iter()
    .chain(plan.guards.iter().copied().map(Condition::Guards))
    .chain([Condition::After]);
    for condition in conditions {
        go_on(&condition.name())?;
        let guarded = matches!(condition, Condition::Guards(_));
        let waiting = &mut || match guarded {
            true => go_on(&format!("{}, {} are held", condition.name(), count(top)?)),
            false => go_on(&condition.name()),
        };
        let in_force = InForce::new(condition, top, waiting)?;
        for (&operation, row) in operations.iter().zip(&mut rows) {
            row.figures.push(Figure {
                condition: condition.name(),
                sample: scene.measure(operation, guarded)?,
            });
        }
        in_force.end(waiting)?;
    }
    Ok(rows)
}

/// The cgroup beside them that nobody guards.
fn elsewhere(top: &Path) -> PathBuf {
    top.with_extension("elsewhere")
}

/// The name of the cgroups and directories of a process, before its pid.
const NAME: &str = "freezer-guard-bench-";

/// The leftovers of killed processes in a directory.
fn left_in(dir: &Path) -> Vec<PathBuf> {
    let is_left = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(NAME)?;
        let pid = name.split('.').next()?;
        (!Path::new("/proc").join(pid).exists()).then_some(())
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| is_left(path).is_some()).collect()
}
