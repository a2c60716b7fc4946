//! `checkpoint` and `restore`: what becomes of images, processes and exit codes, with
//! real CRIU, undisturbed and disturbed.

mod disturbed;
mod report;
mod several;
mod undisturbed;
mod wrong;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload, within},
    dump::{self, log},
    lifecycle::expect_clean,
    process::{Finished, LONG, Process, run},
    scratch_folder,
};

pub(super) fn list(list: &mut List<'_>) {
    if list.can_dump() {
        undisturbed::list(list);
        several::list(list);
    }
}

/// Of a unit of systemd's.
pub(super) fn list_unit(list: &mut List<'_>) {
    if list.can_dump() {
        undisturbed::list_unit(list);
        several::list_unit(list);
    }
}

/// Disturbances and mistakes.
pub(super) fn list_disturbed(list: &mut List<'_>) {
    if list.can_dump() {
        disturbed::list(list);
        list.add_alone("report", report::of_images);
        wrong::list(list);
    }
}

/// A workload, and a place for images of it. In the order in which they can be removed.
struct Scene {
    workload: Workload,
    cgroup: Cgroup,
    dir: PathBuf,
}

/// Files of a scene with which an action script of CRIU's and the test wait for each
/// other.
const HELD: &str = "held";
const GO: &str = "go";

impl Scene {
    fn new(hierarchy: Hierarchy) -> Result<Self> {
        Self::beside(hierarchy, None)
    }

    /// Its workload is in another cgroup too, of the other hierarchy.
    fn beside(hierarchy: Hierarchy, other: Option<&Cgroup>) -> Result<Self> {
        Self::of(Cgroup::new(hierarchy)?, other)
    }

    fn of(cgroup: Cgroup, other: Option<&Cgroup>) -> Result<Self> {
        let cgroups: Vec<_> = [&cgroup].into_iter().chain(other).collect();
        let workload = Workload::start(&cgroups, 3)?;
        workload.expect_counting()?;
        let dir = scratch_folder("checkpoint")?;
        Ok(Self {
            workload,
            cgroup,
            dir,
        })
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `freezer-guard checkpoint` of the cgroup into the directory of this name.
    fn checkpoint(&self, name: &str) -> Command {
        let mut command = Command::new("freezer-guard");
        command.arg("checkpoint").arg("--cgroup");
        command.arg(&self.cgroup.path).arg("-D");
        command.arg(self.place(name));
        command
    }

    /// `freezer-guard restore` of the directory of this name.
    fn restore(&self, name: &str) -> Command {
        let mut command = Command::new("freezer-guard");
        command.args(["restore", "-D"]).arg(self.place(name));
        command
    }

    /// An option for CRIU: a script that it runs at this stage.
    fn at_stage(&self, stage: &str, script: &str) -> Result<[String; 3]> {
        let path = self.place("script");
        let text =
            format!("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = {stage} ] || exit 0\n{script}");
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let path = path.to_str().context("a plain path")?.to_owned();
        Ok(["--".to_owned(), "--action-script".to_owned(), path])
    }

    /// Options that hold CRIU up at this stage.
    fn hold_at(&self, stage: &str) -> Result<[String; 3]> {
        let (held, go) = (self.place(HELD), self.place(GO));
        let script = format!(
            "touch {}\nwhile [ ! -e {} ]; do sleep 0.1; done\n",
            held.display(),
            go.display()
        );
        self.at_stage(stage, &script)
    }

    /// Runs it until CRIU is held up: before it freezes, under a guard.
    fn start_held(&self, command: &mut Command) -> Result<Process> {
        let mut process = Process::spawn(command.args(self.hold_at("pre-dump")?))?;
        self.wait_held(&mut process)?;
        Ok(process)
    }

    fn wait_held(&self, process: &mut Process) -> Result<()> {
        let held = self.place(HELD);
        // The kernel may have all programs to verify first.
        within(LONG, "CRIU is held up", || {
            ensure!(!process.has_ended()?, "it has ended before");
            Ok(held.exists())
        })
    }

    fn go_on(&self) -> Result<()> {
        Ok(fs::write(self.place(GO), "")?)
    }

    /// The names of what there is beside the script and its signs.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !["script", HELD, GO].contains(&&*name) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// That the checkpoint into the directory of this name went well.
    fn expect_good(&self, finished: Finished, name: &str) -> Result<Finished> {
        let failed = self.place(&format!("{name}.failed"));
        finished.expect(0).with_context(|| log(&failed, "dump.log"))
    }

    #[track_caller]
    fn expect_names(&self, expected: &[&str]) -> Result<()> {
        let names = self.names()?;
        ensure!(names == expected, "there are {names:?}, not {expected:?}");
        Ok(())
    }

    /// As [`dump::tracks_memory`]. If CRIU cannot tell, `checkpoint` refuses to build one image on
    /// another, and says why.
    fn tracks_memory(&self) -> Result<bool> {
        if dump::tracks_memory()? {
            return Ok(true);
        }
        run(self.checkpoint("refused").arg("--pre-dump"))?
            .expect(69)?
            .says("CRIU cannot tell which memory has changed")?;
        self.expect_names(&[])?;
        self.expect_unharmed()?;
        Ok(false)
    }

    /// That it runs on, not frozen, not guarded.
    fn expect_unharmed(&self) -> Result<()> {
        let state = self.cgroup.state()?;
        ensure!(state == "THAWED", "left {state}");
        self.workload.expect_counting()?;
        expect_clean()
    }
}

/// For what is named by a pid, all of whose cgroups are guarded: a v2 cgroup that is not
/// ours, where there is v2 besides.
fn for_pids(hierarchy: Hierarchy) -> Result<Option<Cgroup>> {
    match hierarchy == Hierarchy::V1 && Hierarchy::V2.is_here() {
        true => Cgroup::new(Hierarchy::V2).map(Some),
        false => Ok(None),
    }
}

fn evidence(images: &Path) -> Result<Value> {
    let path = images.join("freezer-guard.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}
