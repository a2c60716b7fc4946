//! Ptrace, and what goes by the same permission.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use nix::{sys::ptrace::attach, unistd::Pid};

use crate::sys;

/// A way to get at another process.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Way {
    /// PTRACE_SEIZE
    Ptrace,
    /// PTRACE_ATTACH
    Attach,
    /// process_vm_writev
    ProcessVm,
    /// Open and write /proc/PID/mem
    Mem,
    /// Open /proc/PID/mem, print `ready`, wait for a line, write
    LateMem,
    /// The same with a page that can be read, and one behind it that cannot
    PartialMem,
    /// Write with a write that hangs in the kernel, print `ready`, wait for a line, let it go on
    StalledMem,
    /// The same with `process_vm_writev`
    StalledVm,
    /// Write 4 to /proc/PID/clear_refs
    ClearRefs,
}

/// The size of a page, bytes.
const PAGE: u64 = 4096;

/// The end of the stack, which holds the name of the program and nothing that changes.
fn address(pid: i32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]"));
    let range = stack.and_then(|line| line.split([' ', '-']).nth(1));
    Ok(u64::from_str_radix(range.context("no stack")?, 16)? - 1)
}

fn mem(pid: i32) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    let file = OpenOptions::new().read(true).write(true).open(&path);
    file.with_context(|| format!("open {path}"))
}

/// Tries to write one byte, a zero over a zero.
pub(super) fn access(way: Way, pid: i32) -> Result<()> {
    match way {
        Way::Ptrace => Ok(sys::seize(pid).context("PTRACE_SEIZE")?),
        Way::Attach => Ok(attach(Pid::from_raw(pid)).context("PTRACE_ATTACH")?),
        Way::ProcessVm => {
            Ok(sys::write_memory(pid, address(pid)?, &[0]).context("process_vm_writev")?)
        }
        Way::Mem => Ok(mem(pid)?.write_all_at(&[0], address(pid)?)?),
        Way::LateMem => {
            let (file, address) = (mem(pid)?, address(pid)?);
            super::ready()?;
            Ok(file.write_all_at(&[0], address).context("write")?)
        }
        Way::PartialMem => {
            let (mut file, page) = (mem(pid)?, address(pid)? + 1 - PAGE);
            super::ready()?;
            let mut same = [0; PAGE as usize];
            file.read_exact_at(&mut same, page).context("read")?;
            file.seek(SeekFrom::Start(page))?;
            Ok(sys::write_beyond(&file, &same).context("write")?)
        }
        Way::StalledMem => {
            let (mut file, address) = (mem(pid)?, address(pid)?);
            file.seek(SeekFrom::Start(address))?;
            super::stalled::write_stalled(&file, &[0])
        }
        Way::StalledVm => super::stalled::copy_stalled(pid, address(pid)?, 0),
        Way::ClearRefs => Ok(fs::write(format!("/proc/{pid}/clear_refs"), "4")?),
    }
}

/// Traces it until there is a line to read.
pub(super) fn hold(pid: i32) -> Result<()> {
    sys::seize(pid).context("PTRACE_SEIZE")?;
    super::ready()
}
