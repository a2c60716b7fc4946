//! What a guard adds to a whole dump: CRIU's time with one, of the time without.

use std::{
    env,
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use super::{
    Error,
    condition::{ALL_SETTLED, be_alone},
    helper::{Helpers, Part, Waiting},
    life::{TIMES, median},
};
use crate::cgroup::Cgroup;

/// What a dump takes with and without a guard, ns each: medians of dumps by turns.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Dump {
    /// `v1` or `v2`: where the guard is.
    pub hierarchy: &'static str,
    /// What the tree that is dumped has written to its memory, MiB.
    pub mib: usize,
    /// Whether the service keeps the programs loaded.
    pub warm: bool,
    /// `criu dump`.
    pub bare: f64,
    /// `freezer-guard run --freeze -- criu dump`.
    pub guarded: f64,
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
    let mut dumps = Vec::new();
    for warm in [false, true] {
        let mut service = None;
        if warm {
            let mut helpers = Helpers::start(vec![Part::Service], top)?;
            helpers.begin(waiting)?;
            service = Some(helpers);
        }
        let (mut bare, mut guarded) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            waiting()?;
            bare.push(dump(&pid, path, false)?);
            if !warm {
                // The kernel removes the programs of the guard before in the background.
                thread::sleep(ALL_SETTLED);
            }
            guarded.push(dump(&pid, path, true)?);
        }
        dumps.push(Dump {
            hierarchy,
            mib,
            warm,
            bare: median(bare),
            guarded: median(guarded),
        });
        if let Some(mut service) = service {
            service.end(waiting)?;
        }
    }
    process.end(waiting)?;
    Ok(dumps)
}

/// How long one dump takes, ns. It says nothing but why it fails.
fn dump(pid: &str, path: &Path, guarded: bool) -> Result<f64, Error> {
    let images = tempfile::tempdir().map_err(Error::operation(format!(
        "create a folder for images in {}",
        env::temp_dir().display()
    )))?;
    let criu = ["criu", "dump", "--leave-running", "-v0", "-t", pid];
    let mut words: Vec<&OsStr> = criu.iter().map(OsStr::new).collect();
    words.extend([OsStr::new("-D"), images.path().as_os_str()]);
    words.extend([OsStr::new("--freeze-cgroup"), path.as_os_str()]);
    let mut command = match guarded {
        false => Command::new(words.remove(0)),
        true => {
            let mut run = Command::new("/proc/self/exe");
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
        .map_err(Error::operation("run criu: is it installed?"))?;
    let took = start.elapsed().as_nanos() as f64;
    if !ended.success() {
        // It may have left it frozen, and what is in it could not end.
        let _ = Cgroup::open(path).and_then(|cgroup| cgroup.thaw());
        return Err(Error::Helper("`criu dump`".to_owned()));
    }
    Ok(took)
}
