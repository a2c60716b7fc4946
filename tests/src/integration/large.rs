//! What the guard costs a real dump, of small and of large trees.

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

/// The memory that each process has written, bytes.
const MEMORY: u64 = 2 << 20;
/// How long a dump may take on an emulated machine.
const LIMIT: Duration = Duration::from_secs(900);

pub(super) fn list(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    list.add("1_task_and_2_mib", |h| compare(h, 1, 9));
    list.add("50_tasks_and_100_mib", |h| compare(h, 50, 5));
    list.add("250_tasks_and_500_mib", |h| compare(h, 250, 3));
    list.add("512_tasks_and_1_gib", |h| compare(h, 512, 3));
}

/// Dumps so many processes with and without a guard, by turns, so often; tells the
/// ratio of the medians of their times.
fn compare(hierarchy: Hierarchy, processes: usize, rounds: usize) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start_slow(&target, processes - 1)?;
    let mut times = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        for (guarded, times) in [false, true].into_iter().zip(&mut times) {
            let took = dump(&target, &workload, processes, guarded)?.as_secs_f64();
            eprintln!("round {round}, guarded {guarded}: {took:.1} s");
            times.push(took);
        }
    }
    let [bare, guarded] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[rounds / 2]
    });
    eprintln!(
        "{processes} tasks: a guarded dump takes {:.3} times as long",
        guarded / bare
    );
    workload.expect_counting()
}

fn dump(target: &Cgroup, workload: &Workload, processes: usize, guarded: bool) -> Result<Duration> {
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
    ensure!(tasks == processes, "the image holds {tasks} tasks");
    ensure!(
        bytes >= processes as u64 * MEMORY,
        "the image holds {bytes} bytes of memory"
    );
    fs::remove_dir_all(&images)?;
    Ok(took)
}
