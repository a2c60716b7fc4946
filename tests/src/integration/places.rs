//! Which files of which cgroups are refused, and which are not.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    process::Held,
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("freeze_and_thaw", freeze_and_thaw);
    list.add("moves_into_the_target", moves);
    list.add("reads_and_other_files", untouched);
    if list.hierarchy.has_kill() {
        list.add("kill", kill);
    }
}

/// A guarded cgroup with two above and one below, and those beside them.
struct Tree {
    // In the order in which they can be removed.
    child: Cgroup,
    target: Cgroup,
    sibling: Cgroup,
    parent: Cgroup,
    uncle: Cgroup,
    grandparent: Cgroup,
}

impl Tree {
    fn new(hierarchy: Hierarchy) -> Result<Self> {
        let grandparent = Cgroup::new(hierarchy)?;
        let uncle = grandparent.child("uncle")?;
        let parent = grandparent.child("parent")?;
        let sibling = parent.child("sibling")?;
        let target = parent.child("target")?;
        let child = target.child("child")?;
        Ok(Self {
            child,
            target,
            sibling,
            parent,
            uncle,
            grandparent,
        })
    }

    fn guarded(&self) -> [&Cgroup; 4] {
        [&self.target, &self.child, &self.parent, &self.grandparent]
    }
}

fn freeze_and_thaw(hierarchy: Hierarchy) -> Result<()> {
    let tree = Tree::new(hierarchy)?;
    let workload = Workload::start(&[&tree.child], 1)?;
    workload.expect_counting()?;
    let held = Held::new(&[&tree.target])?;
    for cgroup in tree.guarded() {
        for value in [hierarchy.frozen(), hierarchy.thawed(), "nonsense"] {
            cgroup.expect_refused(hierarchy.file(), value)?;
        }
    }
    for cgroup in [&tree.sibling, &tree.uncle] {
        cgroup.freeze()?;
        cgroup.thaw()?;
    }
    ensure!(
        tree.target.state()? == "FROZEN",
        "the target is {}",
        tree.target.state()?
    );
    held.release()?.expect(0)?.says("refused 12 attempts")?;
    for cgroup in tree.guarded() {
        cgroup.freeze()?;
        cgroup.thaw()?;
    }
    workload.expect_counting()
}

fn kill(hierarchy: Hierarchy) -> Result<()> {
    let tree = Tree::new(hierarchy)?;
    let workload = Workload::start(&[&tree.target], 1)?;
    let held = Held::new(&[&tree.target])?;
    for cgroup in tree.guarded() {
        cgroup.expect_refused("cgroup.kill", "1")?;
    }
    tree.sibling.expect_allowed("cgroup.kill", "1")?;
    held.release()?.expect(0)?;
    workload.expect_counting()
}

fn moves(hierarchy: Hierarchy) -> Result<()> {
    let tree = Tree::new(hierarchy)?;
    let elsewhere = Cgroup::new(hierarchy)?;
    let foreign = Workload::start(&[&elsewhere], 0)?;
    let pid = foreign.pid.to_string();
    let held = Held::new(&[&tree.target])?;
    for file in hierarchy.moves() {
        for cgroup in [&tree.target, &tree.child] {
            cgroup.expect_refused(file, &pid)?;
        }
    }
    for cgroup in [&tree.sibling, &tree.uncle, &tree.parent, &elsewhere] {
        cgroup.expect_allowed("cgroup.procs", &pid)?;
    }
    held.release()?.expect(0)?;
    tree.target.expect_allowed("cgroup.procs", &pid)?;
    foreign.expect_counting()
}

fn untouched(hierarchy: Hierarchy) -> Result<()> {
    let tree = Tree::new(hierarchy)?;
    let workload = Workload::start(&[&tree.target], 1)?;
    let held = Held::new(&[&tree.target])?;
    for cgroup in tree.guarded() {
        let mut files = vec![hierarchy.file()];
        files.extend(
            hierarchy
                .moves()
                .iter()
                .filter(|file| **file != "cgroup.threads"),
        );
        for file in files {
            let path = cgroup.path.join(file);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        }
        let (file, value) = match hierarchy {
            Hierarchy::V1 => ("notify_on_release", "0"),
            Hierarchy::V2 => ("cgroup.max.descendants", "1000"),
        };
        cgroup.expect_allowed(file, value)?;
    }
    // A file of the same name that is not of a cgroup.
    let path = super::scratch("files").join(hierarchy.file());
    fs::create_dir_all(path.parent().context("it has a parent")?)?;
    fs::write(&path, "1")?;
    held.release()?.expect(0)?.says("refused nothing")?;
    workload.expect_counting()
}
