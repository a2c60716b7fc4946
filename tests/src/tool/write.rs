//! Every way to write to a cgroup's file.

use std::{
    fs::{self, File, OpenOptions},
    io::{IoSlice, IoSliceMut, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::{
            fs::{FileExt as _, MetadataExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;
use nix::{
    fcntl::{SpliceFFlags, splice},
    sys::{
        sendfile::sendfile,
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        wait::waitpid,
    },
    unistd::ForkResult,
};

use crate::sys;

/// A system call that writes.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Method {
    Write,
    Writev,
    Pwrite,
    Pwritev2,
    Sendfile,
    Splice,
    Aio,
    IoUring,
    IoUringWq,
    /// To a file that is opened by its handle, so that the kernel has no name for it.
    Handle,
}

/// Opens and writes.
pub(super) fn write(method: Method, path: &Path, value: &str) -> Result<()> {
    let file = match method {
        Method::Handle => open_by_handle(path)?,
        _ => open(path)?,
    };
    write_to(&file, method, value.as_bytes()).with_context(|| format!("write {}", path.display()))
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

fn open_by_handle(path: &Path) -> Result<File> {
    let id = fs::metadata(path)?.ino();
    let directory = File::open(path.parent().context("a path of a file")?)?;
    // The kernel forgets the names that nobody uses.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    sys::open_kernfs_node(&directory, id).context("open it by its handle")
}

fn write_to(mut file: &File, method: Method, bytes: &[u8]) -> Result<()> {
    match method {
        Method::Write | Method::Handle => file.write_all(bytes)?,
        Method::Writev => {
            let written = file.write_vectored(&[IoSlice::new(bytes), IoSlice::new(b"")])?;
            anyhow::ensure!(written == bytes.len(), "wrote {written} bytes only");
        }
        Method::Pwrite => file.write_all_at(bytes, 0)?,
        Method::Pwritev2 => {
            nix::sys::uio::pwritev(file, &[IoSlice::new(bytes)], 0)?;
        }
        Method::Sendfile => {
            let path = std::env::temp_dir().join(format!("sendfile.{}", std::process::id()));
            fs::write(&path, bytes)?;
            let source = File::open(&path)?;
            fs::remove_file(&path)?;
            sendfile(file.as_fd(), source.as_fd(), None, bytes.len())?;
        }
        Method::Splice => {
            let (reader, mut writer) = std::io::pipe()?;
            writer.write_all(bytes)?;
            splice(
                reader.as_fd(),
                None,
                file.as_fd(),
                None,
                bytes.len(),
                SpliceFFlags::empty(),
            )?;
        }
        Method::Aio => sys::aio_write(file, bytes)?,
        Method::IoUring => sys::io_uring_write(file, bytes, false)?,
        Method::IoUringWq => sys::io_uring_write(file, bytes, true)?,
    }
    Ok(())
}

/// Writes through a descriptor opened before the word to go.
pub(super) fn late(path: &Path, value: &str) -> Result<()> {
    let mut file = open(path)?;
    super::ready()?;
    file.write_all(value.as_bytes())
        .with_context(|| format!("write {}", path.display()))
}

/// Writes through a descriptor that another process opened.
pub(super) fn passed(path: &Path, value: &str) -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    match sys::fork()? {
        ForkResult::Child => {
            let file = open(path)?;
            let fds = [file.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&fds)];
            sendmsg::<()>(
                theirs.as_raw_fd(),
                &[IoSlice::new(b"x")],
                &message,
                MsgFlags::empty(),
                None,
            )?;
            Ok(())
        }
        ForkResult::Parent { child } => {
            let mut space = nix::cmsg_space!([i32; 1]);
            let mut byte = [0; 1];
            let mut buffers = [IoSliceMut::new(&mut byte)];
            let message = recvmsg::<()>(
                ours.as_raw_fd(),
                &mut buffers,
                Some(&mut space),
                MsgFlags::empty(),
            )?;
            let mut file = message
                .cmsgs()?
                .find_map(|message| match message {
                    ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                    _ => None,
                })
                .map(sys::own)
                .context("no descriptor came")?;
            waitpid(child, None)?;
            super::ready()?;
            file.write_all(value.as_bytes())
                .with_context(|| format!("write {}", path.display()))
        }
    }
}

/// Writes from a second thread.
pub(super) fn from_thread(path: PathBuf, value: String) -> Result<()> {
    match thread::spawn(move || write(Method::Write, &path, &value)).join() {
        Ok(result) => result,
        Err(_) => bail!(anyhow!("the thread panicked")),
    }
}
