//! Which tasks belong to a checkpoint, and whether they are where they should
//! be: Serge Hallyn's question of 2009.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    path::{Path, PathBuf},
};

use procfs::process::Process;
use schemars::JsonSchema;

use super::{
    Cgroup, Error,
    proc::{Membership, Status, children, numbers, status},
};
use crate::words::{self, escaped};

/// A thread and its cgroup.
#[derive(Debug, Clone, serde::Serialize, JsonSchema)]
pub struct Task {
    /// The pid of its process.
    pub pid: i32,
    /// The id of the thread.
    pub tid: i32,
    /// The name of the thread (`comm`).
    pub comm: String,
    /// The path of its cgroup, as in `/proc/PID/cgroup`.
    #[serde(serialize_with = "words::text")]
    pub cgroup: PathBuf,
    /// The path in Base64, if it is not valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_base64: Option<String>,
}

/// A thread that another process traces.
#[derive(Debug, Clone, serde::Serialize, JsonSchema)]
#[schemars(rename = "TracedTask")]
pub struct Traced {
    /// The thread.
    #[serde(flatten)]
    pub task: Task,
    /// The pid of the process that traces it.
    pub tracer: i32,
    /// The name of that process (`comm`).
    pub tracer_comm: String,
}

/// The threads of a process tree and of its cgroups.
#[derive(Debug, Default, serde::Serialize, JsonSchema)]
#[schemars(rename = "Tree")]
pub struct Report {
    /// The number of threads in the cgroups.
    pub tasks: usize,
    /// The threads of the tree that are outside of the cgroups.
    pub strays: Vec<Task>,
    /// The threads in the cgroups that do not belong to the tree. A checkpointer freezes them and
    /// does not dump them.
    pub foreign: Vec<Task>,
    /// The threads in the cgroups that a process traces.
    pub traced: Vec<Traced>,
    /// The stopped threads in v1 cgroups, for instance after SIGSTOP. CRIU waits for them forever.
    pub stopped: Vec<Task>,
    /// The uprobes of this host (`uprobe_events` of tracefs). Their breakpoints are in the code of
    /// every process that maps their file, and get into its image.
    pub probes: Vec<String>,
}

/// The roots of the process trees in these cgroups and below: those
/// processes whose parents are elsewhere.
///
/// # Errors
/// When `/proc` or a cgroup cannot be read.
pub fn roots(cgroups: &[&Cgroup]) -> Result<Vec<Task>, Error> {
    let mut parents = BTreeMap::new();
    for tid in inside(cgroups)?.into_values().flatten() {
        if let Some(status) = status(tid)? {
            parents.insert(status.tgid, status.ppid);
        }
    }
    let mut roots = Vec::new();
    for (pid, parent) in &parents {
        if !parents.contains_key(parent) {
            roots.extend(place(*pid, *pid, None)?);
        }
    }
    Ok(roots)
}

/// The root of the one process tree in these cgroups and below.
///
/// # Errors
/// When there is none or several, or `/proc` or a cgroup cannot be read.
pub fn root(cgroups: &[&Cgroup]) -> Result<Task, Error> {
    let mut roots = roots(cgroups)?;
    let path = || {
        let first = cgroups.first().map(|cgroup| cgroup.path().to_owned());
        first.unwrap_or_default()
    };
    match roots.len() {
        0 => Err(Error::Empty(path())),
        1 => Ok(roots.remove(0)),
        _ => Err(Error::ManyTrees {
            path: path(),
            roots: roots
                .into_iter()
                .map(|task| format!("pid {} ({})", task.pid, escaped(&task.comm)))
                .collect(),
        }),
    }
}

/// The threads in these cgroups and below, for each hierarchy.
pub(super) fn inside(cgroups: &[&Cgroup]) -> Result<BTreeMap<u32, BTreeSet<i32>>, Error> {
    let mut inside: BTreeMap<u32, BTreeSet<i32>> = BTreeMap::new();
    for cgroup in cgroups {
        let tasks = inside.entry(cgroup.key().hierarchy_id).or_default();
        tasks.extend(cgroup.threads()?);
        for descendant in cgroup.descendants()? {
            match descendant.threads() {
                // It was removed just now.
                Err(Error::Io { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
                threads => tasks.extend(threads?),
            }
        }
    }
    Ok(inside)
}

/// A process as it is now; `None` when it has ended, be it that nobody has noticed.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn process(pid: i32) -> Result<Option<Task>, Error> {
    match Tasks::default().threads(pid)?.is_empty() {
        true => Ok(None),
        false => place(pid, pid, None),
    }
}

/// Returns whether a process descends from another one, now.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn descends_from(pid: i32, ancestor: i32) -> Result<bool, Error> {
    let mut next = pid;
    while let Some(Status { ppid, .. }) = status(next)?.filter(|status| status.ppid != 0) {
        if ppid == ancestor {
            return Ok(true);
        }
        next = ppid;
    }
    Ok(false)
}

/// Returns the first of these cgroups that holds the process, itself or in a cgroup below it.
///
/// # Errors
/// When a cgroup cannot be read.
pub fn first_with(cgroups: &[Cgroup], pid: i32) -> Result<Option<&Cgroup>, Error> {
    for cgroup in cgroups {
        if inside(&[cgroup])?
            .values()
            .any(|tasks| tasks.contains(&pid))
        {
            return Ok(Some(cgroup));
        }
    }
    Ok(None)
}

/// The threads of each container, for each hierarchy that it is in.
struct Inside(Vec<BTreeMap<u32, BTreeSet<i32>>>);

impl Inside {
    fn of(containers: &[Vec<Cgroup>]) -> Result<Self, Error> {
        let threads = |cgroups: &Vec<Cgroup>| inside(&cgroups.iter().collect::<Vec<_>>());
        Ok(Self(
            containers.iter().map(threads).collect::<Result<_, _>>()?,
        ))
    }

    fn all(&self) -> BTreeSet<i32> {
        let threads = self.0.iter().flat_map(BTreeMap::values);
        threads.flatten().copied().collect()
    }

    fn has_v1(&self) -> bool {
        let mut hierarchies = self.0.iter().flat_map(BTreeMap::keys);
        hierarchies.any(|hierarchy| *hierarchy != 0)
    }

    /// Returns a hierarchy in which the thread is in a container.
    fn hierarchy_of(&self, tid: i32) -> Option<u32> {
        let mut places = self.0.iter().flatten();
        let place = places.find(|(_, threads)| threads.contains(&tid));
        place.map(|(hierarchy, _)| *hierarchy)
    }

    /// Returns the hierarchies in which the thread strays from the container that it is in the most:
    /// none if it is in one.
    fn strays_in(&self, tid: i32) -> Vec<u32> {
        let missing = self.0.iter().map(|container| {
            let without = container.iter().filter(|(_, there)| !there.contains(&tid));
            without.map(|(hierarchy, _)| *hierarchy).collect::<Vec<_>>()
        });
        missing.min_by_key(Vec::len).unwrap_or_default()
    }
}

/// Looks at the tasks in these containers: in their cgroups and below. With `roots`, each thread of the
/// process trees below them has to be in one container: in all hierarchies that this is in. Each task is
/// read once. Zombies are left out: they do nothing any more.
///
/// # Errors
/// When there is no such process, or `/proc` or a cgroup cannot be read.
pub fn examine(containers: &[Vec<Cgroup>], roots: &[i32]) -> Result<Report, Error> {
    let inside = Inside::of(containers)?;
    let all = inside.all();
    let mut report = Report {
        tasks: all.len(),
        probes: probes(),
        ..Report::default()
    };
    let mut tasks = Tasks::default();
    let mut processes = BTreeSet::new();
    for tid in &all {
        let Some(status) = tasks.read(*tid)? else {
            continue;
        };
        processes.insert(status.tgid);
        let (pid, tracer) = (status.tgid, status.tracerpid);
        if tracer != 0
            && let Some(task) = place(pid, *tid, inside.hierarchy_of(*tid))?
        {
            let tracer_comm = tasks.read(tracer)?.map(|status| status.name.clone());
            report.traced.push(Traced {
                task,
                tracer,
                tracer_comm: tracer_comm.unwrap_or_default(),
            });
        }
    }
    if inside.has_v1() {
        for tid in all.iter().filter(|tid| is_stopped(**tid)) {
            if let Some(status) = tasks.read(*tid)? {
                let stopped = place(status.tgid, *tid, inside.hierarchy_of(*tid))?;
                report.stopped.extend(stopped);
            }
        }
    }
    let mut trees = BTreeSet::new();
    for root in roots {
        trees.extend(tree(&mut tasks, *root)?);
    }
    if roots.is_empty() {
        trees = processes;
    }
    let mut known = BTreeSet::new();
    for pid in trees {
        known.extend(look_for(&mut tasks, pid, &inside, &mut report.strays)?);
    }
    for tid in all.difference(&known) {
        if let Some(status) = tasks.read(*tid)? {
            let foreign = place(status.tgid, *tid, inside.hierarchy_of(*tid))?;
            report.foreign.extend(foreign);
        }
    }
    Ok(report)
}

/// The threads of these processes that are not in these cgroups or below.
///
/// # Errors
/// When `/proc` or a cgroup cannot be read.
pub fn strays(cgroups: &[&Cgroup], pids: &[i32]) -> Result<Vec<Task>, Error> {
    let inside = Inside(vec![inside(cgroups)?]);
    let mut strays = Vec::new();
    for pid in pids {
        look_for(&mut Tasks::default(), *pid, &inside, &mut strays)?;
    }
    Ok(strays)
}

/// Looks where the threads of a process are; returns them.
fn look_for(
    tasks: &mut Tasks,
    pid: i32,
    inside: &Inside,
    strays: &mut Vec<Task>,
) -> Result<Vec<i32>, Error> {
    let threads = tasks.threads(pid)?;
    for tid in &threads {
        for hierarchy in inside.strays_in(*tid) {
            strays.extend(place(pid, *tid, Some(hierarchy))?);
        }
    }
    Ok(threads)
}

/// Returns whether a thread is stopped. (The freezer of v1 hides that from its state.)
fn is_stopped(tid: i32) -> bool {
    let place = Process::new(tid).and_then(|thread| thread.wchan());
    place.is_ok_and(|place| place == "do_signal_stop")
}

/// The definitions of all uprobes; none where this process may not read them.
fn probes() -> Vec<String> {
    let paths = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let events = paths.map(|path| fs::read_to_string(Path::new(path).join("uprobe_events")));
    let first = events.into_iter().find_map(Result::ok).unwrap_or_default();
    first.lines().map(str::to_owned).collect()
}

/// The processes of the tree below `root`, itself included. Who is not of it is not
/// looked at: there may be many, and the tree is frozen meanwhile.
fn tree(tasks: &mut Tasks, root: i32) -> Result<BTreeSet<i32>, Error> {
    // A thread is none.
    if tasks.read(root)?.is_none_or(|status| status.tgid != root) {
        return Err(Error::NoProcess(root));
    }
    let mut tree = BTreeSet::from([root]);
    let mut new = vec![root];
    while let Some(pid) = new.pop() {
        for tid in tasks.threads(pid)? {
            let children = children(pid, tid)?;
            new.extend(children.into_iter().filter(|child| tree.insert(*child)));
        }
    }
    Ok(tree)
}

/// The threads of the tree below this process, itself included.
pub(super) fn threads_below(root: i32) -> Result<BTreeSet<i32>, Error> {
    let mut tasks = Tasks::default();
    let mut threads = BTreeSet::new();
    for pid in tree(&mut tasks, root)? {
        threads.extend(tasks.threads(pid)?);
    }
    Ok(threads)
}

/// What `/proc` says of tasks, read once.
#[derive(Default)]
struct Tasks(BTreeMap<i32, Option<Status>>);

impl Tasks {
    /// `None`: it has ended.
    fn read(&mut self, tid: i32) -> Result<Option<&Status>, Error> {
        let status = match self.0.entry(tid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(status(tid)?),
        };
        Ok(status.as_ref())
    }

    /// The threads of a process, zombies left out.
    fn threads(&mut self, pid: i32) -> Result<Vec<i32>, Error> {
        let mut threads = Vec::new();
        for tid in numbers(&Path::new("/proc").join(pid.to_string()).join("task"))? {
            if self
                .read(tid)?
                .is_some_and(|status| !matches!(status.state, 'Z' | 'X'))
            {
                threads.push(tid);
            }
        }
        Ok(threads)
    }
}

/// The thread with its name and its cgroup in this hierarchy; `None` when it
/// has ended.
fn place(pid: i32, tid: i32, hierarchy: Option<u32>) -> Result<Option<Task>, Error> {
    let Some(status) = status(tid)? else {
        return Ok(None);
    };
    let Some(cgroups) = Membership::all(tid)? else {
        return Ok(None);
    };
    let cgroup = cgroups
        .into_iter()
        .find(|cgroup| hierarchy.is_none_or(|hierarchy| cgroup.hierarchy_id == hierarchy))
        .map_or_else(PathBuf::new, |cgroup| cgroup.path);
    Ok(Some(Task {
        pid,
        tid,
        comm: status.name,
        cgroup_base64: words::base64(&cgroup),
        cgroup,
    }))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio, id};

    use super::descends_from;

    #[test]
    fn a_grandchild_descends_and_a_parent_does_not() {
        let mut shell = Command::new("sh")
            .args(["-c", "cat; :"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        let descends = |pid, of| descends_from(pid, of).expect("/proc");
        let (own, child) = (id().cast_signed(), shell.id().cast_signed());
        assert!(descends(child, own));
        assert!(!descends(own, child) && !descends(own, own));
        let grandchild = loop {
            if let [grandchild] = super::children(child, child).expect("/proc")[..] {
                break grandchild;
            }
        };
        assert!(descends(grandchild, own) && descends(grandchild, child));
        drop(shell.stdin.take());
        shell.wait().expect("it ends");
        assert!(!descends(i32::MAX, own));
    }
}
