//! Which tasks belong to a checkpoint, and whether they are where they should
//! be: Serge Hallyn's question of 2009.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use procfs::{ProcError, ProcResult, process::Process};

use super::{Cgroup, Error};

/// A thread and where it is.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Task {
    /// Its process.
    pub pid: i32,
    /// Its thread id.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// Its cgroup, as `/proc/PID/cgroup` has it.
    pub cgroup: PathBuf,
}

/// A thread that somebody has under ptrace.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Traced {
    /// The thread.
    #[serde(flatten)]
    pub task: Task,
    /// The process that traces it.
    pub tracer: i32,
    /// Its name.
    pub tracer_comm: String,
}

/// What [`examine`] found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// The threads that are in the cgroups.
    pub tasks: usize,
    /// Threads of the tree that are not in the cgroups. Without a root: threads
    /// of processes that are there with others of their threads only.
    pub strays: Vec<Task>,
    /// Threads in the cgroups that are not of the tree: a checkpointer holds
    /// them and does not dump them.
    pub foreign: Vec<Task>,
    /// Threads in the cgroups that are being traced.
    pub traced: Vec<Traced>,
}

/// The roots of the process trees in these cgroups and below: those
/// processes whose parents are elsewhere.
///
/// # Errors
/// When `/proc` or a cgroup cannot be read.
pub fn roots(cgroups: &[&Cgroup]) -> Result<Vec<Task>, Error> {
    let mut parents = BTreeMap::new();
    for tid in inside(cgroups)?.into_values().flatten() {
        if let Some(status) = found(Process::new(tid).and_then(|task| task.status()))? {
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
                .map(|task| format!("pid {} ({})", task.pid, task.comm))
                .collect(),
        }),
    }
}

/// The threads in these cgroups and below, for each hierarchy.
fn inside(cgroups: &[&Cgroup]) -> Result<BTreeMap<u32, BTreeSet<i32>>, Error> {
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
    match threads(pid)?.is_empty() {
        true => Ok(None),
        false => place(pid, pid, None),
    }
}

/// Looks at the tasks in these cgroups and below. With `root`, the process tree
/// below it, threads included, has to be there. Each task is read once. Zombies
/// are left out: they do nothing any more.
///
/// # Errors
/// When there is no such process, or `/proc` or a cgroup cannot be read.
pub fn examine(cgroups: &[&Cgroup], root: Option<i32>) -> Result<Report, Error> {
    let inside = inside(cgroups)?;
    let hierarchy_of = |tid: i32| {
        let mut hierarchies = inside.iter().filter(|(_, tasks)| tasks.contains(&tid));
        hierarchies.next().map(|(hierarchy, _)| *hierarchy)
    };
    let all: BTreeSet<i32> = inside.values().flatten().copied().collect();
    let mut report = Report {
        tasks: all.len(),
        ..Report::default()
    };
    let mut processes = BTreeSet::new();
    for tid in &all {
        let Some(status) = found(Process::new(*tid).and_then(|task| task.status()))? else {
            continue;
        };
        processes.insert(status.tgid);
        if status.tracerpid != 0
            && let Some(task) = place(status.tgid, *tid, hierarchy_of(*tid))?
        {
            let tracer = status.tracerpid;
            let stat = found(Process::new(tracer).and_then(|process| process.stat()))?;
            report.traced.push(Traced {
                task,
                tracer,
                tracer_comm: stat.map(|stat| stat.comm).unwrap_or_default(),
            });
        }
    }
    let tree = match root {
        Some(root) => tree(root)?,
        None => processes.iter().copied().collect(),
    };
    let mut known = BTreeSet::new();
    for pid in tree {
        known.extend(look_for(pid, &inside, &mut report.strays)?);
    }
    for tid in all.difference(&known) {
        let Some(status) = found(Process::new(*tid).and_then(|task| task.status()))? else {
            continue;
        };
        report
            .foreign
            .extend(place(status.tgid, *tid, hierarchy_of(*tid))?);
    }
    Ok(report)
}

/// The threads of these processes that are not in these cgroups or below.
///
/// # Errors
/// When `/proc` or a cgroup cannot be read.
pub fn strays(cgroups: &[&Cgroup], pids: &[i32]) -> Result<Vec<Task>, Error> {
    let inside = inside(cgroups)?;
    let mut strays = Vec::new();
    for pid in pids {
        look_for(*pid, &inside, &mut strays)?;
    }
    Ok(strays)
}

/// Looks where the threads of a process are; returns them.
fn look_for(
    pid: i32,
    inside: &BTreeMap<u32, BTreeSet<i32>>,
    strays: &mut Vec<Task>,
) -> Result<Vec<i32>, Error> {
    let threads = threads(pid)?;
    for tid in &threads {
        for (hierarchy, tasks) in inside {
            if !tasks.contains(tid) {
                strays.extend(place(pid, *tid, Some(*hierarchy))?);
            }
        }
    }
    Ok(threads)
}

/// The processes of the tree below `root`, itself included.
fn tree(root: i32) -> Result<Vec<i32>, Error> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut exists = false;
    for process in procfs::process::all_processes()? {
        if let Some(stat) = found(process.and_then(|process| process.stat()))? {
            exists |= stat.pid == root;
            children.entry(stat.ppid).or_default().push(stat.pid);
        }
    }
    if !exists {
        return Err(Error::NoProcess(root));
    }
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next) {
        tree.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    Ok(tree)
}

/// The threads of a process, zombies left out.
fn threads(pid: i32) -> Result<Vec<i32>, Error> {
    let Some(tasks) = found(Process::new(pid).and_then(|process| process.tasks()))? else {
        return Ok(Vec::new());
    };
    let mut threads = Vec::new();
    for task in tasks {
        if let Some(stat) = found(task.and_then(|task| task.stat()))?
            && !matches!(stat.state, 'Z' | 'X')
        {
            threads.push(stat.pid);
        }
    }
    Ok(threads)
}

/// The thread with its name and its cgroup in this hierarchy; `None` when it
/// has ended.
fn place(pid: i32, tid: i32, hierarchy: Option<u32>) -> Result<Option<Task>, Error> {
    let Some(task) = found(Process::new(tid))? else {
        return Ok(None);
    };
    let (Some(stat), Some(cgroups)) = (found(task.stat())?, found(task.cgroups())?) else {
        return Ok(None);
    };
    let cgroup = cgroups
        .0
        .into_iter()
        .find(|cgroup| hierarchy.is_none_or(|hierarchy| cgroup.hierarchy == hierarchy))
        .map(|cgroup| PathBuf::from(cgroup.pathname));
    Ok(Some(Task {
        pid,
        tid,
        comm: stat.comm,
        cgroup: cgroup.unwrap_or_default(),
    }))
}

/// A task may end while it is looked at: then there is nothing to see.
fn found<T>(result: ProcResult<T>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ProcError::NotFound(_)) => Ok(None),
        Err(ProcError::Io(error, _)) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
