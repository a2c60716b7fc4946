//! The process trees of a checkpoint.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap_complete::engine::ArgValueCompleter;
use freezer_guard::{
    cgroup::{self, Cgroup, Task},
    guard::{self, Target},
};

use crate::cli::{complete, error::Result, target};

/// How the user names them.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
pub(super) struct Named {
    /// Checkpoint the tree of this process, and guard the cgroups that it is in
    #[arg(long, short = 't', value_name = "PID")]
    pid: Vec<i32>,
    /// Checkpoint the process tree in this cgroup: its directory
    #[arg(long, value_name = "PATH", add = ArgValueCompleter::new(complete::cgroups))]
    cgroup: Vec<PathBuf>,
    /// Checkpoint the process tree of this systemd unit, such as foo.service
    #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::units))]
    unit: Vec<String>,
}

impl Named {
    /// Whether all are named by their cgroups, and none by its process.
    pub(super) fn is_by_cgroup(&self) -> bool {
        self.pid.is_empty()
    }

    /// Finds each tree, and what to guard for it.
    pub(super) fn find(&self) -> Result<Vec<Tree>> {
        let mut trees = Vec::new();
        for pid in &self.pid {
            let root = cgroup::process(*pid)?.ok_or(cgroup::Error::NoProcess(*pid))?;
            trees.push(Tree::new(target::of_pid(*pid)?, root));
        }
        for path in &self.cgroup {
            trees.push(Tree::of(vec![Cgroup::open(path)?])?);
        }
        for unit in &self.unit {
            trees.push(Tree::of(cgroup::of_unit(unit)?)?);
        }
        refuse_twice(&trees)?;
        name_apart(&mut trees);
        Ok(trees)
    }
}

/// A process tree, and its container.
pub(super) struct Tree {
    pub(super) target: Target,
    pub(super) root: Task,
    /// The name of its cgroup, and with it of its image among those of several trees.
    pub(super) name: OsString,
}

impl Tree {
    /// The one in this container.
    fn of(target: Target) -> Result<Self> {
        let root = cgroup::root(&target.iter().collect::<Vec<_>>())?;
        Ok(Self::new(target, root))
    }

    fn new(target: Target, root: Task) -> Self {
        let mut names = target.iter().filter_map(|cgroup| cgroup.path().file_name());
        let name = names.next_back().unwrap_or(OsStr::new("root")).to_owned();
        Self { target, root, name }
    }
}

/// Refuses a tree that is named twice. (A guard refuses a cgroup that lies in another one.)
fn refuse_twice(trees: &[Tree]) -> Result<()> {
    let path = |tree: &Tree| tree.target.first().map(|cgroup| cgroup.path().to_owned());
    for (number, tree) in trees.iter().enumerate() {
        let before = trees[..number].iter();
        if let Some(first) = before.rev().find(|first| first.root.pid == tree.root.pid) {
            let [tree, first] = [tree, first].map(|tree| path(tree).unwrap_or_default());
            return Err(guard::Error::Overlap(tree, first).into());
        }
    }
    Ok(())
}

/// Adds the pid to each name that several trees have.
fn name_apart(trees: &mut [Tree]) {
    let names: Vec<_> = trees.iter().map(|tree| tree.name.clone()).collect();
    for tree in trees {
        if names.iter().filter(|name| **name == tree.name).count() > 1 {
            tree.name.push(format!("-{}", tree.root.pid));
        }
    }
}
