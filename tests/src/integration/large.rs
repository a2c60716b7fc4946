//! A large tree: what the guard costs a real dump of it.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    dump::{criu_dump, log},
    process::{Held, Process},
    scratch_folder,
};

/// How many processes there are; each has 2 MiB of memory that it has written.
const PROCESSES: usize = 512;
/// How often each kind of dump is made.
const ROUNDS: usize = 2;
/// How long one may take on an emulated machine.
const LIMIT: Duration = Duration::from_secs(900);

pub(super) fn list(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    list.add("512_tasks_and_1_gib", compare);
}

/// Dumps with and without a guard, by turns; tells the ratio of their times.
fn compare(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start_slow(&target, PROCESSES - 1)?;
    let mut times = [Duration::ZERO; 2];
    for round in 1..=ROUNDS {
        for (guarded, time) in [false, true].into_iter().zip(&mut times) {
            let took = dump(&target, &workload, guarded)?;
            eprintln!(
                "round {round}, guarded {guarded}: {:.1} s",
                took.as_secs_f64()
            );
            *time += took;
        }
    }
    let [bare, guarded] = times.map(|time| time.as_secs_f64());
    eprintln!("a guarded dump takes {:.3} times as long", guarded / bare);
    workload.expect_counting()
}

fn dump(target: &Cgroup, workload: &Workload, guarded: bool) -> Result<Duration> {
    let images = scratch_folder("images")?;
    let mut command = match guarded {
        true => Held::command(&[target]),
        false => Command::new("env"),
    };
    command.args(guarded.then_some("--"));
    criu_dump(&mut command, workload.pid, target, &images);
    command.args(["--leave-running", "--timeout", "300"]);
    let start = Instant::now();
    let mut process = Process::spawn(&mut command)?;
    process.close_input();
    let finished = process.wait(LIMIT)?;
    let took = start.elapsed();
    let finished = finished
        .expect(0)
        .with_context(|| log(&images, "dump.log"))?;
    if guarded {
        finished.says("refused nothing")?;
    }
    let (mut tasks, mut bytes) = (0, 0);
    for entry in fs::read_dir(&images)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        tasks += usize::from(name.starts_with("core-"));
        if name.starts_with("pages-") {
            bytes += entry.metadata()?.len();
        }
    }
    ensure!(tasks == PROCESSES, "the image holds {tasks} tasks");
    ensure!(bytes >= 1 << 30, "the image holds {bytes} bytes of memory");
    fs::remove_dir_all(&images)?;
    Ok(took)
}
