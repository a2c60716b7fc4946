//! Process trees to freeze, dump and restore.

use std::{
    fs::{self, File, OpenOptions},
    hint::black_box,
    io::{Read as _, Write},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, setsid},
};

use crate::sys;

/// Memory that each process holds and has touched.
const MEMORY_BYTES: usize = 2 << 20;

fn join(cgroups: &[PathBuf]) -> Result<()> {
    // On the heap: the page of a constant may not be in memory after a fork. On v1 every guard
    // refuses a write to `cgroup.procs` that it cannot read, also outside its target.
    let ourselves = "0".to_owned();
    for cgroup in cgroups {
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, &ourselves).with_context(|| format!("write {}", procs.display()))?;
    }
    Ok(())
}

/// Starts the tree; returns when all of it runs and its root's pid is printed.
pub(super) fn start(
    dir: &Path,
    cgroups: &[PathBuf],
    children: usize,
    pause: Duration,
) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    start_root(children + 1, cgroups, |writer| {
        fs::write(dir.join("pid"), std::process::id().to_string())?;
        count_all(dir, children, pause, writer)
    })
}

/// This process and its children count for ever.
pub(super) fn count_all(
    dir: &Path,
    children: usize,
    pause: Duration,
    started: impl Write,
) -> Result<()> {
    let mut number = 0;
    for child in 1..=children {
        if let ForkResult::Child = sys::fork()? {
            number = child;
            break;
        }
    }
    count(&dir.join(number.to_string()), pause, started)
}

/// Starts the root of a tree in these cgroups; prints its pid once as many
/// processes have written a byte.
fn start_root(
    processes: usize,
    cgroups: &[PathBuf],
    root: impl FnOnce(std::io::PipeWriter) -> Result<()>,
) -> Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    match sys::fork()? {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut said = Vec::new();
            reader.read_to_end(&mut said)?;
            anyhow::ensure!(said.len() == processes, "the workload did not start");
            println!("{child}");
            Ok(())
        }
        ForkResult::Child => {
            drop(reader);
            setsid()?;
            join(cgroups)?;
            root(writer)
        }
    }
}

/// Standard input, output and error go nowhere.
fn detach() -> Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// Counts for ever; `started` hears of the first count, and of a failure by
/// what is missing.
fn count(path: &Path, pause: Duration, mut started: impl Write) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let file = file.with_context(|| format!("create {}", path.display()))?;
    let mut memory = vec![1_u8; MEMORY_BYTES];
    let mut counter = 0_u64;
    write_counter(&file, counter)?;
    detach()?;
    started.write_all(b"x")?;
    drop(started);
    loop {
        counter += 1;
        // Touch another page each time, so that there is something to dump.
        let index = usize::try_from(counter)? * 4096 % MEMORY_BYTES;
        memory[index] = memory[index].wrapping_add(1);
        black_box(&memory);
        write_counter(&file, counter)?;
        thread::sleep(pause);
    }
}

/// Of fixed size: CRIU refuses to restore a file whose size has changed.
fn write_counter(file: &File, counter: u64) -> Result<()> {
    Ok(file.write_all_at(format!("{counter:020}").as_bytes(), 0)?)
}

/// Hangs inside a system call where the freezer cannot stop us, until killed or
/// until there is a line to read.
pub(super) fn stall(cgroups: &[PathBuf]) -> Result<()> {
    join(cgroups)?;
    let (_reader, writer) = std::io::pipe()?;
    super::stalled::write_stalled(&File::from(std::os::fd::OwnedFd::from(writer)), b"x")
}

/// Joins a cgroup and prints `ready`. After some seconds an alarm ends it, or the end of its
/// parent does.
pub(super) fn mortal(cgroup: &Path, alarm_seconds: u32) -> Result<()> {
    join(&[cgroup.to_owned()])?;
    set_pdeathsig(Signal::SIGKILL)?;
    sys::alarm(alarm_seconds);
    println!("ready");
    thread::sleep(Duration::from_secs(1000));
    Ok(())
}

/// Joins a cgroup, then has children that have short-lived children, all the time.
pub(super) fn bomb(cgroup: &Path, children: usize) -> Result<()> {
    start_root(children, &[cgroup.to_owned()], |mut writer| {
        detach()?;
        for _ in 0..children {
            if let ForkResult::Child = sys::fork()? {
                writer.write_all(b"x")?;
                drop(writer);
                loop {
                    match sys::fork()? {
                        ForkResult::Child => std::process::exit(0),
                        ForkResult::Parent { child } => nix::sys::wait::waitpid(child, None)?,
                    };
                    thread::sleep(Duration::from_secs(2));
                }
            }
        }
        drop(writer);
        loop {
            thread::sleep(Duration::from_secs(1000));
        }
    })
}
