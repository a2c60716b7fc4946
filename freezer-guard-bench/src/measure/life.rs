//! What the life of a guard takes: from the start of `run` until COMMAND runs under it,
//! and from COMMAND's end until `run` has ended.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Stdio,
    thread,
    time::Instant,
};

use freezer_guard::{
    cgroup::Cgroup,
    guard,
    kernel::{Locked, Memory},
};
use procfs::process::Process;

use super::{
    Error,
    clock::ALL_SETTLED,
    condition::be_alone,
    helper::{Helpers, Part, Waiting, product},
};

/// What `run` takes, ns each: medians.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Life {
    /// `v1` or `v2`: where the guard is.
    pub(crate) hierarchy: &'static str,
    /// The tasks in the cgroup, which are frozen, verified and thawed.
    pub(crate) tasks: usize,
    /// What the guard finds loaded.
    pub(crate) found: Found,
    /// Until COMMAND runs.
    pub(crate) begin: f64,
    /// After its end.
    pub(crate) end: f64,
}

/// What a guard finds loaded when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Found {
    /// Nothing, as the first guard after a boot: it loads the programs.
    Nothing,
    /// The programs that an earlier guard has loaded: it attaches them.
    Programs,
    /// The service, which keeps most of them attached.
    Service,
}

/// Guards that many clients begin, hold and end.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Scale {
    /// `v1` or `v2`: where the guards are.
    pub(crate) hierarchy: &'static str,
    /// How many.
    pub(crate) guards: usize,
    /// By so many clients at once, while the service runs.
    pub(crate) clients: usize,
    /// ns for each guard, of the time for all.
    pub(crate) begin: f64,
    /// The same.
    pub(crate) end: f64,
}

/// What is in memory while the service runs.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct InMemory {
    /// `v1` or `v2`: where the guards are.
    pub(crate) hierarchy: &'static str,
    /// How many guards are held.
    pub(crate) guards: usize,
    /// Of the service that is resident, bytes.
    pub(crate) service: u64,
    /// In the kernel, bytes.
    #[serde(flatten)]
    pub(crate) kernel: Memory,
}

/// How often each is done.
pub(super) const TIMES: usize = 3;
/// The threads of each process of those that are guarded.
const THREADS: usize = 100;

/// Measures `run` with so many tasks in the cgroup.
pub(super) fn measure(
    hierarchy: &'static str,
    tasks: usize,
    path: &Path,
    top: &Path,
    waiting: Waiting<'_>,
) -> Result<Vec<Life>, Error> {
    be_alone()?;
    let parts = (0..tasks)
        .step_by(THREADS)
        .map(|first| Part::Tasks(THREADS.min(tasks - first)));
    let mut crowd = Helpers::start(parts.collect(), path)?;
    crowd.begin(waiting)?;
    let mut lives = Vec::new();
    for found in [Found::Nothing, Found::Programs, Found::Service] {
        let mut service = None;
        if found == Found::Service {
            let mut helpers = Helpers::start(vec![Part::Service], top)?;
            helpers.begin(waiting)?;
            service = Some(helpers);
        }
        let mut begins = Vec::new();
        let mut ends = Vec::new();
        for time in 0..TIMES {
            waiting()?;
            if found == Found::Nothing {
                be_alone()?;
            }
            if found != Found::Service || time == 0 {
                // The kernel detaches and removes programs in the background.
                thread::sleep(ALL_SETTLED);
            }
            let (begin, end) = thawed(run(path), path, waiting)?;
            begins.push(begin);
            ends.push(end);
        }
        lives.push(Life {
            hierarchy,
            tasks,
            found,
            begin: median(begins),
            end: median(ends),
        });
        if let Some(mut service) = service {
            service.end(waiting)?;
        }
    }
    crowd.end(waiting)?;
    Ok(lives)
}

/// After a failure: it may have left the cgroup frozen, and what is in it could not end;
/// and it may have failed because we are to stop.
pub(super) fn thawed<T>(
    result: Result<T, Error>,
    path: &Path,
    waiting: Waiting<'_>,
) -> Result<T, Error> {
    if result.is_err() {
        let _ = Cgroup::open(path).and_then(|cgroup| cgroup.thaw());
        waiting()?;
    }
    result
}

pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// COMMAND says what it is told: then it runs.
fn run(path: &Path) -> Result<(f64, f64), Error> {
    let failed = || Error::operation("run `freezer-guard run`");
    let start = Instant::now();
    let mut child = product()
        .args([
            "run",
            "--quiet",
            "--freeze",
            "--freeze-timeout",
            "600s",
            "--cgroup",
        ])
        .arg(path)
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let mut said = String::new();
    if let (Some(mut input), Some(output)) = (input, output) {
        // If it has ended, nothing is said.
        let _ = input.write_all(b"guarded\n");
        BufReader::new(output)
            .read_line(&mut said)
            .map_err(failed())?;
    }
    let begin = start.elapsed();
    let start = Instant::now();
    // Its input ends with the pipe, which has gone.
    let ended = child.wait().map_err(failed())?;
    match said.is_empty() || !ended.success() {
        true => Err(Error::Helper("`freezer-guard run`".to_owned())),
        false => Ok((begin.as_nanos() as f64, start.elapsed().as_nanos() as f64)),
    }
}

/// How many processes begin guards at the same time.
const CLIENTS: usize = 64;

/// Shares so many guards out among as many clients as there can be.
fn clients(guards: usize) -> Vec<Part> {
    let each = guards.div_ceil(CLIENTS).max(1);
    (0..guards)
        .step_by(each)
        .map(|first| Part::Guards(first..(first + each).min(guards)))
        .collect()
}

/// Measures what is in memory while the service runs, without guards and with so many,
/// and how fast many clients begin and end these.
pub(super) fn scale(
    hierarchy: &'static str,
    guards: usize,
    top: &Path,
    waiting: Waiting<'_>,
) -> Result<(Vec<InMemory>, Scale), Error> {
    be_alone()?;
    let mut service = Helpers::start(vec![Part::Service], top)?;
    let (_, said) = service.begin(waiting)?;
    let pid = said
        .first()
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(|| Error::Helper(Part::Service.to_string()))?;
    let mut memory = vec![in_memory(hierarchy, 0, pid)?];
    let parts = clients(guards);
    let clients = parts.len();
    let mut helpers = Helpers::start(parts, top)?;
    let (begin, _) = helpers.begin(waiting)?;
    let held = guard::count()?;
    if held != guards {
        return Err(Error::Lost { guards, held });
    }
    memory.push(in_memory(hierarchy, guards, pid)?);
    let end = helpers.end(waiting)?;
    drop(helpers);
    if guard::is_any_in_force()? {
        return Err(Error::Left);
    }
    service.end(waiting)?;
    let each = |nanoseconds: u128| nanoseconds as f64 / guards as f64;
    Ok((
        memory,
        Scale {
            hierarchy,
            guards,
            clients,
            begin: each(begin.as_nanos()),
            end: each(end.as_nanos()),
        },
    ))
}

fn in_memory(hierarchy: &'static str, guards: usize, service: i32) -> Result<InMemory, Error> {
    let resident = Process::new(service)
        .and_then(|process| process.status())
        .map_err(|error| Error::Helper(format!("the service: {error}")))?
        .vmrss
        .unwrap_or_default();
    Ok(InMemory {
        hierarchy,
        guards,
        // It comes in KiB.
        service: resident * 1024,
        kernel: Locked::wait()?.memory()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{CLIENTS, Part, clients};

    #[test]
    fn every_guard_has_one_client() {
        for guards in [0, 1, 63, 64, 65, 100, 10_000] {
            let parts = clients(guards);
            assert!(parts.len() <= CLIENTS);
            let numbers = parts.into_iter().flat_map(|part| match part {
                Part::Guards(which) => which,
                _ => 0..0,
            });
            assert!(numbers.eq(0..guards));
        }
    }
}
