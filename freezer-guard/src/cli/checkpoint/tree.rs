//! The process trees of a checkpoint.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap_complete::engine::ArgValueCompleter;
use freezer_guard::{
    cgroup::{self, Cgroup, Task},
    guard::{self, Target},
    words::escaped,
};

use crate::cli::{
    complete,
    error::{Error, Result},
    target,
};

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
        let mut found = Vec::new();
        for pid in &self.pid {
            let root = cgroup::process(*pid)?.ok_or(cgroup::Error::NoProcess(*pid))?;
            found.push(Found {
                said: format!("--pid {pid}"),
                target: target::of_pid(*pid)?,
                root: Ok(root),
            });
        }
        for path in &self.cgroup {
            let said = format!("--cgroup {}", path.display());
            found.push(Found::of(said, vec![Cgroup::open(path)?]));
        }
        for unit in &self.unit {
            found.push(Found::of(format!("--unit {unit}"), cgroup::of_unit(unit)?));
        }
        refuse_overlap(&found)?;
        let trees = found.into_iter().map(Tree::new);
        let mut trees = trees.collect::<Result<Vec<_>, _>>()?;
        if trees.len() > 1 {
            trees.iter().try_for_each(Tree::refuse_strays)?;
        }
        let roots: Vec<_> = trees.iter().map(|tree| tree.root.pid).collect();
        name_apart(trees.iter_mut().map(|tree| &mut tree.name), &roots);
        Ok(trees)
    }
}

/// What a name of the user stands for.
struct Found {
    /// The option, as the user has written it.
    said: String,
    target: Target,
    /// The root of its tree, or why it has none: two names that do not go together are the better reason.
    root: Result<Task, cgroup::Error>,
}

impl Found {
    fn of(said: String, target: Target) -> Self {
        let root = cgroup::root(&target.iter().collect::<Vec<_>>());
        Self { said, target, root }
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
    fn new(found: Found) -> Result<Self, cgroup::Error> {
        let Found { target, root, .. } = found;
        let mut names = target.iter().filter_map(|cgroup| cgroup.path().file_name());
        let name = names.next_back().unwrap_or(OsStr::new("root")).to_owned();
        let root = root?;
        Ok(Self { target, root, name })
    }

    /// Refuses a tree with a task in the cgroup of another tree. The guard looks for tasks outside of
    /// all the cgroups.
    fn refuse_strays(&self) -> Result<()> {
        let target = std::slice::from_ref(&self.target);
        let strays = cgroup::examine(target, &[self.root.pid])?.strays;
        match (strays.is_empty(), self.target.first()) {
            (false, Some(cgroup)) => Err(guard::Error::Stray {
                path: cgroup.path().to_owned(),
                tasks: strays,
            }
            .into()),
            _ => Ok(()),
        }
    }
}

/// Refuses two names of one tree, and a tree that is a part of another one or lies in its cgroup: a CRIU
/// cannot seize the tasks of another CRIU.
fn refuse_overlap(found: &[Found]) -> Result<()> {
    for (number, one) in found.iter().enumerate() {
        for other in &found[number + 1..] {
            if let (Ok(root), Ok(same)) = (&one.root, &other.root)
                && root.pid == same.pid
            {
                return Err(Error::SameTree {
                    one: one.said.clone(),
                    other: other.said.clone(),
                    root: describe(root),
                });
            }
            refuse_inside(one, other)?;
            refuse_inside(other, one)?;
        }
    }
    Ok(())
}

/// Refuses `inner` if it is a part of `outer`, or lies in its cgroup.
fn refuse_inside(inner: &Found, outer: &Found) -> Result<()> {
    let Ok(root) = &inner.root else { return Ok(()) };
    if let Ok(outer_root) = &outer.root
        && cgroup::descends_from(root.pid, outer_root.pid)?
    {
        return Err(Error::TreeInTree {
            inner: inner.said.clone(),
            inner_root: describe(root),
            outer: outer.said.clone(),
            outer_root: describe(outer_root),
        });
    }
    match cgroup::first_with(&outer.target, root.pid)? {
        Some(cgroup) => Err(Error::TreeInCgroup {
            inner: inner.said.clone(),
            root: describe(root),
            outer: outer.said.clone(),
            cgroup: cgroup.path().to_owned(),
        }),
        None => Ok(()),
    }
}

fn describe(root: &Task) -> String {
    format!("pid {} ({})", root.pid, escaped(&root.comm))
}

/// Adds the pid of its root to each name that several trees have. (A cgroup may have the name that another
/// one gets by this.)
fn name_apart<'a>(names: impl Iterator<Item = &'a mut OsString>, roots: &[i32]) {
    let mut names: Vec<_> = names.collect();
    loop {
        let before: Vec<OsString> = names.iter().map(|name| (**name).clone()).collect();
        let mut is_changed = false;
        for (name, root) in names.iter_mut().zip(roots) {
            if before.iter().filter(|other| *other == &**name).count() > 1 {
                name.push(format!("-{root}"));
                is_changed = true;
            }
        }
        if !is_changed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OsString, name_apart};

    #[test]
    fn no_two_images_have_the_same_name() {
        let named = |names: &[&str], roots: &[i32]| -> Vec<OsString> {
            let mut names: Vec<_> = names.iter().map(OsString::from).collect();
            name_apart(names.iter_mut(), roots);
            names
        };
        assert_eq!(named(&["web", "db"], &[5, 7]), ["web", "db"]);
        assert_eq!(named(&["x", "db", "x"], &[5, 6, 7]), ["x-5", "db", "x-7"]);
        let names = named(&["x", "x", "x-5"], &[5, 7, 9]);
        assert_eq!(names, ["x-5-5", "x-7", "x-5-9"]);
    }
}
