//! What a guard adds to a whole dump: CRIU's time with one, of the time without.

use std::{
    env,
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use freezer_guard::criu::Criu;
use procfs::{Current as _, Meminfo};

use super::{
    Error, NAME,
    clock::ALL_SETTLED,
    condition::be_alone,
    helper::{Helpers, Part, Waiting, product},
    life::{Found, TIMES, median, thawed},
};

/// What a dump takes with and without a guard, ns each: medians of dumps by turns.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Dump {
    /// `v1` or `v2`: where the guard is.
    pub(crate) hierarchy: &'static str,
    /// What the tree that is dumped has written to its memory, MiB.
    pub(crate) mib: usize,
    /// What the guard finds loaded.
    pub(crate) found: Found,
    /// `criu dump`.
    pub(crate) bare: f64,
    /// `freezer-guard run --freeze -- criu dump`.
    pub(crate) guarded: f64,
}

/// Dumps a process with so much memory, which goes on after each dump.
pub(super) fn measure(
    hierarchy: &'static str,
    mib: usize,
    path: &Path,
    top: &Path,
    waiting: Waiting<'_>,
) -> Result<Vec<Dump>, Error> {
    be_alone()?;
    let mut process = Helpers::start(vec![Part::Memory(mib)], path)?;
    let (_, said) = process.begin(waiting)?;
    let pid = said.concat();
    let mut dump = |guarded| {
        waiting()?;
        thawed(dump(&pid, path, guarded), path, waiting)
    };
    let [mut bare, mut cold, mut loaded, mut warm] = [const { Vec::new() }; 4];
    for _ in 0..TIMES {
        be_alone()?;
        // The kernel detaches and removes programs in the background.
        thread::sleep(ALL_SETTLED);
        bare.push(dump(false)?);
        cold.push(dump(true)?);
        thread::sleep(ALL_SETTLED);
        loaded.push(dump(true)?);
    }
    // It would guard a bare dump by itself.
    let mut service = Helpers::start(vec![Part::Service], top)?;
    service.begin(&mut || Ok(()))?;
    // As above.
    thread::sleep(ALL_SETTLED);
    for _ in 0..TIMES {
        warm.push(dump(true)?);
    }
    service.end(waiting)?;
    process.end(waiting)?;
    let bare = median(bare);
    let guarded = [
        (Found::Nothing, cold),
        (Found::Programs, loaded),
        (Found::Service, warm),
    ];
    let dumps = guarded.map(|(found, guarded)| Dump {
        hierarchy,
        mib,
        found,
        bare,
        guarded: median(guarded),
    });
    Ok(dumps.into())
}

/// How long one dump takes, ns. It says nothing but why it fails.
fn dump(pid: &str, path: &Path, guarded: bool) -> Result<f64, Error> {
    let images = tempfile::Builder::new()
        .prefix(&format!("{NAME}{}.", std::process::id()))
        .tempdir()
        .map_err(Error::operation(format!(
            "create a folder for images in {}",
            env::temp_dir().display()
        )))?;
    let criu = ["criu", "dump", "--leave-running", "-v1", "-t", pid];
    let mut words: Vec<&OsStr> = criu.iter().map(OsStr::new).collect();
    words.extend([OsStr::new("-D"), images.path().as_os_str()]);
    words.extend([OsStr::new("--freeze-cgroup"), path.as_os_str()]);
    let mut command = match guarded {
        false => Command::new(words.remove(0)),
        true => {
            let mut run = product();
            run.args(["run", "--quiet", "--freeze", "--cgroup"])
                .arg(path)
                .arg("--");
            run
        }
    };
    let start = Instant::now();
    let ended = command
        .args(words)
        .stdin(Stdio::null())
        .status()
        .map_err(Error::operation("run criu"))?;
    let took = start.elapsed().as_nanos() as f64;
    match ended.success() {
        true => Ok(took),
        false => Err(Error::Helper("`criu dump`".to_owned())),
    }
}

/// Whether there is CRIU, and enough memory for such a process.
pub(super) fn check(mib: usize) -> Result<(), Error> {
    Criu::find(None)?;
    let memory = Meminfo::current().map_err(|error| Error::Helper(error.to_string()))?;
    let available = memory.mem_available.unwrap_or(memory.mem_free) >> 20;
    match mib as u64 > available {
        true => Err(Error::NoMemory { mib, available }),
        false => Ok(()),
    }
}
