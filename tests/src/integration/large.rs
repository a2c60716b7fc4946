//! A dump of a large tree under the guard.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    dump::{criu_dump, log},
    process::{Held, Process},
    scratch_folder,
};

/// The memory that each process has written, bytes.
const MEMORY: u64 = 2 << 20;
/// How long a dump may take on an emulated machine.
const LIMIT: Duration = Duration::from_secs(900);

pub(super) fn list(list: &mut List<'_>) {
    if list.can_dump() {
        list.add("512_tasks_and_1_gib", |h| dump(h, 512));
    }
}

/// Dumps so many processes, which go on.
fn dump(hierarchy: Hierarchy, processes: usize) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start_slow(&target, processes - 1)?;
    let images = scratch_folder("images")?;
    let mut command = Held::command(&[&target]);
    command.arg("--");
    criu_dump(&mut command, workload.pid, &target, &images);
    command.args(["--leave-running", "--timeout", "300"]);
    let mut process = Process::spawn(&mut command)?;
    process.close_input();
    let finished = process.wait(LIMIT)?;
    finished
        .expect(0)
        .with_context(|| log(&images, "dump.log"))?
        .says("refused nothing")?;
    let (mut tasks, mut bytes) = (0, 0);
    for entry in fs::read_dir(&images)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        tasks += usize::from(name.starts_with("core-"));
        if name.starts_with("pages-") {
            bytes += entry.metadata()?.len();
        }
    }
    ensure!(tasks == processes, "the image holds {tasks} tasks");
    ensure!(
        bytes >= processes as u64 * MEMORY,
        "the image holds {bytes} bytes of memory"
    );
    fs::remove_dir_all(&images)?;
    workload.expect_counting()
}
