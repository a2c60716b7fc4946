//! `freezer-guard events`: complete for each reader, and honest when it is not.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::Signal,
};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, eventually},
    lifecycle::expect_clean,
    process::{Held, LONG, Process, expect_version, guard, tool},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("two_readers_see_all", two_readers);
    list.add("begun_before_the_reader", begun_before);
    list.add("lost_are_told", lost);
    list.add("killed_reader_leaves_nothing", killed);
    list.add("text", text);
}

fn follow() -> Result<Process> {
    let before = readers();
    let mut reader =
        Process::spawn(Command::new("freezer-guard").args(["events", "--follow", "--json"]))?;
    eventually("it follows", || {
        ensure!(!reader.has_ended()?, "`events` has ended");
        Ok(readers() > before)
    })?;
    // It has its number a moment before it takes part.
    std::thread::sleep(std::time::Duration::from_millis(300));
    Ok(reader)
}

/// How many follow the events: each holds a file locked.
fn readers() -> usize {
    let files = fs::read_dir("/run/freezer-guard").into_iter().flatten();
    files
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().starts_with("reader-"))
        .filter_map(|file| fs::File::open(file.path()).ok())
        .filter(|file| is_locked(file).is_ok_and(|locked| locked))
        .count()
}

/// Whether the file has an OFD lock of somebody's.
fn is_locked(file: &fs::File) -> Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as i16)
}

fn next(reader: &mut Process) -> Result<Value> {
    let line = reader.line()?;
    let event = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
    expect_version(&event)?;
    Ok(event)
}

fn expect(reader: &mut Process, event: &str) -> Result<Value> {
    let value = next(reader)?;
    ensure!(value["event"] == event, "not {event}: {value}");
    ensure!(
        value["time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z')),
        "{value}"
    );
    Ok(value)
}

fn two_readers(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut readers = [follow()?, follow()?];
    let path = target.freezer().display().to_string();
    let mut writer =
        Process::spawn(Command::new("guest-tool").args(["stalled", &path, hierarchy.thawed()]))?;
    writer.expect_line("ready")?;
    let held = Held::new(&[&target])?;
    tool(["write", "write", &path, hierarchy.thawed()])?.expect(libc::EBUSY)?;
    writer.tell("go")?;
    writer.wait(LONG)?.expect(0)?;
    held.release()?.expect(73)?;
    for reader in &mut readers {
        let begun = expect(reader, "begun")?;
        ensure!(begun["cgroups"][0] == target.text(), "{begun}");
        expect(reader, "checkpointing")?;
        let denial = expect(reader, "denial")?;
        let by = &denial["by"];
        ensure!(
            by["comm"] == "guest-tool" && by["protection"] == "freeze",
            "{denial}"
        );
        ensure!(by["what"] == format!("write to {path}"), "{denial}");
        let violation = expect(reader, "violation")?;
        ensure!(
            violation["by"]["what"] == format!("thawed {}", target.text()),
            "{violation}"
        );
        let ended = expect(reader, "ended")?;
        ensure!(ended["guard"] == begun["guard"], "{ended}");
    }
    for reader in readers {
        reader.signal(Signal::SIGINT)?;
        reader.wait(LONG)?.expect(0)?;
    }
    expect_clean()
}

fn begun_before(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    for _ in 0..3 {
        target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    }
    let mut reader = follow()?;
    expect(&mut reader, "begun")?;
    expect(&mut reader, "checkpointing")?;
    let denial = expect(&mut reader, "denial")?;
    ensure!(denial["by"]["count"] == 3, "{denial}");
    let so_far = guard(["events", "--json"])?.expect(0)?;
    ensure!(so_far.stdout.lines().count() == 3, "{so_far:?}");
    held.release()?.expect(0)?;
    expect(&mut reader, "ended")?;
    reader.signal(Signal::SIGTERM)?;
    reader.wait(LONG)?.expect(0)?;
    expect_clean()
}

/// More than fit into the ring while the reader does not read.
fn lost(hierarchy: Hierarchy) -> Result<()> {
    const STORM: u64 = 5000;
    let target = Cgroup::new(hierarchy)?;
    let mut reader = follow()?;
    reader.signal(Signal::SIGSTOP)?;
    let held = Held::new(&[&target])?;
    for _ in 0..STORM {
        target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    }
    held.release()?
        .expect(0)?
        .says(&format!("refused {STORM} attempts"))?;
    reader.signal(Signal::SIGCONT)?;
    let (mut denials, mut lost) = (0, 0);
    while lost == 0 {
        let event = next(&mut reader)?;
        match event["event"].as_str() {
            Some("denial") => denials += 1,
            Some("lost") => lost += event["count"].as_u64().context("a count")?,
            _ => {}
        }
    }
    // The end is among the lost.
    ensure!(
        denials + lost == STORM + 1,
        "{denials} denials and {lost} lost"
    );
    reader.signal(Signal::SIGINT)?;
    reader.wait(LONG)?.expect(0)?;
    expect_clean()
}

fn killed(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    for _ in 0..2 {
        let mut reader = follow()?;
        reader.signal(Signal::SIGKILL)?;
        eventually("the kill", || reader.has_ended())?;
        Held::new(&[&target])?.release()?.expect(0)?;
        expect_clean()?;
    }
    Ok(())
}

fn text(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    guard(["events"])?.expect(0)?.says("no cgroup is guarded")?;
    let held = Held::new(&[&target])?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    let finished = guard(["events"])?.expect(0)?;
    for words in [
        "begun: ",
        "checkpointing: ",
        "denial: integration (pid ",
        &target.text(),
    ] {
        ensure!(
            finished.stdout.contains(words),
            "no {words} in:\n{}",
            finished.stdout
        );
    }
    held.release()?.expect(0)?;
    expect_clean()
}
