//! Writes to the memory of a target's tasks, in ways that nothing refuses.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload, eventually},
        lifecycle::expect_clean,
        process::{Held, LONG, Process, guards, tool},
    },
    expect_violated, violations,
};

/// A write that was permitted before the guard began; it ends with this errno.
pub(super) fn permitted(hierarchy: Hierarchy, way: &str, errno: i32) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let pid = workload.pid.to_string();
    let mut writer = Process::spawn(Command::new("guest-tool").args(["access", way, &pid]))?;
    writer.expect_line("ready")?;
    let held = Held::new(&[&target])?;
    ensure!(violations("ptrace")? == 0, "counted before it was done");
    writer.tell("go")?;
    eventually("it is noticed", || Ok(violations("ptrace")? == 1))?;
    expect_violated(
        held.release()?,
        writer.pid(),
        &format!("wrote to the memory of pid {pid}"),
    )?;
    writer.wait(LONG)?.expect(errno)?;
    workload.expect_counting()?;
    expect_clean()
}

/// The pages that are dirty are those that an incremental dump writes.
pub(super) fn clear_refs(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let pid = workload.pid.to_string();
    let held = Held::new(&[&target])?;
    // Which pages were referenced matters to nobody.
    fs::write(format!("/proc/{pid}/clear_refs"), "1")?;
    ensure!(violations("ptrace")? == 0, "no dirty bit was cleared");
    tool(["access", "clear_refs", &pid])?.expect(0)?;
    ensure!(violations("ptrace")? == 1, "it was not noticed");
    held.release()?
        .expect(73)?
        .says(&format!("cleared the dirty bits of pid {pid}"))?;
    workload.expect_counting()?;
    expect_clean()
}

/// A probe puts a breakpoint into the code of each process that maps the file. In an image it
/// would end the process after the restore.
pub(super) fn uprobe(hierarchy: Hierarchy) -> Result<()> {
    let tracing = Path::new("/sys/kernel/tracing");
    if !tracing.join("uprobe_events").exists() {
        let (kind, flags) = (Some("tracefs"), MsFlags::empty());
        mount(kind, tracing, kind, flags, None::<&str>).context("mount tracefs")?;
    }
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 1)?;
    let exe = fs::read_link(format!("/proc/{}/exe", workload.pid))?;
    // Its beginning: no process of the workload comes there again.
    let place = format!("{}:{:#x}", exe.display(), entry_offset(&exe)?);
    let events = tracing.join("uprobe_events");
    fs::write(&events, format!("p:trials/begin {place}")).context("make a probe")?;
    let held = Held::new(&[&target])?;
    let enable = tracing.join("events/trials/begin/enable");
    let mut prober = Process::spawn(Command::new("bash").args([
        "-c",
        "echo ready; read -r x; echo 1 > \"$1\"",
        "bash",
        &enable.display().to_string(),
    ]))?;
    prober.expect_line("ready")?;
    let pid = prober.pid();
    prober.tell("go")?;
    prober.wait(LONG)?.expect(0)?;
    // In each of two processes. (The kernel may write more than once.)
    ensure!(violations("ptrace")? >= 2, "{:?}", guards()?);
    let finished = held.release()?.says("warning: this host has uprobes")?;
    expect_violated(finished, pid, "wrote to the memory of pid")?;
    fs::write(&enable, "0")?;
    // Opened to be written anew, it forgets every probe.
    fs::write(&events, "")?;
    workload.expect_counting()?;
    expect_clean()
}

/// Where in an ELF file its first instruction is.
fn entry_offset(path: &Path) -> Result<u64> {
    let file = fs::read(path)?;
    let word = |at: usize, length: usize| -> Result<u64> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(file.get(at..at + length).context("a short file")?);
        Ok(u64::from_le_bytes(bytes))
    };
    // `struct elf64_hdr` and `struct elf64_phdr` of `linux/elf.h`.
    let (entry, headers) = (word(24, 8)?, usize::try_from(word(32, 8)?)?);
    let (size, number) = (
        usize::try_from(word(54, 2)?)?,
        usize::try_from(word(56, 2)?)?,
    );
    for header in (0..number).map(|index| headers + index * size) {
        let (kind, offset) = (word(header, 4)?, word(header + 8, 8)?);
        let (start, length) = (word(header + 16, 8)?, word(header + 32, 8)?);
        if kind == 1 && (start..start + length).contains(&entry) {
            return Ok(entry - start + offset);
        }
    }
    anyhow::bail!("{} has no code at its entry", path.display())
}
