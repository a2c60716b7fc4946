//! Writes that stall inside the kernel, after it has checked them.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::fd::AsFd as _,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    fcntl::{SpliceFFlags, splice},
    unistd::gettid,
};

use crate::sys;

/// Waits until the thread sleeps in a kernel function with this in its name.
fn wait_asleep(tid: i32, place: &str) -> Result<()> {
    let path = format!("/proc/self/task/{tid}/stack");
    while !std::fs::read_to_string(&path)?.contains(place) {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Does `write` in a thread of its own; says `ready` once that hangs at
/// `place`, and lets it go on by `release` at the word to go.
fn stalled(
    write: impl FnOnce() -> Result<()> + Send + 'static,
    place: &str,
    release: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        // The other side waits for it.
        let _ = sender.send(gettid().as_raw());
        write()
    });
    wait_asleep(receiver.recv()?, place)?;
    super::ready()?;
    release()?;
    writer.join().map_err(|_| anyhow!("the writer panicked"))?
}

/// Writes from a page that is filled at the word to go.
pub(super) fn write_stalled(file: &File, value: &[u8]) -> Result<()> {
    let (userfault, page) = sys::stalling_page().context("make a page that stalls")?;
    let file = file.try_clone()?;
    let length = value.len();
    stalled(
        move || Ok(sys::write_raw(file, &page[..length])?),
        "userfault",
        || Ok(sys::fill_page(&userfault, page, value)?),
    )
}

/// Copies a byte into another process, from a page that is filled at the word to go.
pub(super) fn copy_stalled(pid: i32, address: u64, value: u8) -> Result<()> {
    let (userfault, page) = sys::stalling_page().context("make a page that stalls")?;
    stalled(
        move || Ok(sys::write_memory(pid, address, &page[..1])?),
        "userfault",
        || Ok(sys::fill_page(&userfault, page, &[value])?),
    )
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

pub(super) fn by_userfaultfd(path: &Path, value: &str) -> Result<()> {
    write_stalled(&open(path)?, value.as_bytes())
}

/// Splices from a pipe that has nothing in it until the word to go.
pub(super) fn by_splice(path: &Path, value: &str) -> Result<()> {
    let file = open(path)?;
    let (reader, mut writer) = std::io::pipe()?;
    let length = value.len();
    stalled(
        move || {
            let flags = SpliceFFlags::empty();
            splice(reader.as_fd(), None, file.as_fd(), None, length, flags)?;
            Ok(())
        },
        "pipe",
        || Ok(writer.write_all(value.as_bytes())?),
    )
}
