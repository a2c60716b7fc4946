//! The system calls that no crate wraps, or none as they are needed here: the only unsafe
//! code of user space.

#![expect(unsafe_code, reason = "raw system calls; each block argues for itself")]

mod bpf;
mod fdinfo;

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, process::CommandExt as _},
    },
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use aya::maps::{MapData, RingBuf};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::SignalFd,
};
use tokio::io::{Interest, unix::AsyncFd};

pub(crate) use bpf::{
    Attachment, Functions, HashMapFd, attach, attach_iterator, create_map, load, load_btf,
    open_pin, pin, test_run, wait_for_programs,
};
pub(crate) use fdinfo::fdinfo;

/// Lets a tokio runtime wait for signals.
///
/// # Errors
/// When the descriptor cannot be registered.
pub fn watch_signals(descriptor: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: a `SignalFd` owns one descriptor, always returns it, and closes it
    // only when it is dropped.
    unsafe { AsyncFd::register(descriptor) }.map_err(|error| error.into_parts().1)
}

/// Lets a tokio runtime wait until something can be read from a descriptor. The read itself has to
/// be one that does not wait.
///
/// # Errors
/// When the descriptor cannot be registered: a regular file cannot.
pub fn watch_input(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns one descriptor, always returns it, and closes it only when it is
    // dropped.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}

/// Lets a tokio runtime wait for events.
///
/// # Errors
/// When the descriptor cannot be registered.
pub(crate) fn watch_events(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: a `RingBuf` owns its map's one descriptor, always returns it, and
    // closes it only when it is dropped.
    unsafe { AsyncFd::register(ring) }.map_err(|error| error.into_parts().1)
}

/// The child gets these signals though its parent blocks them. (`Command`
/// hands the parent's mask on.)
pub fn unblock_in_child(command: &mut Command, signals: SigSet) {
    // SAFETY: between fork and exec only `sigprocmask` is called, which is
    // async-signal-safe (signal-safety(7)).
    unsafe {
        command.pre_exec(move || Ok(signals.thread_unblock()?));
    }
}

/// Returns a signal that is pending for this process, and would end it if it were not blocked.
pub(crate) fn pending_signal() -> Option<Signal> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call writes the set unless it fails.
    let pending = unsafe {
        if libc::sigpending(set.as_mut_ptr()) != 0 {
            return None;
        }
        SigSet::from_sigset_t_unchecked(set.assume_init())
    };
    let ends = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ];
    ends.into_iter().find(|signal| pending.contains(*signal))
}

/// Returns whether this process ignores a signal. `nohup` ignores SIGHUP for its command, and a shell
/// ignores SIGINT for its background jobs.
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the old one; all zeros are valid.
    unsafe {
        libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Whether process ids here are those of the kernel.
pub(crate) fn is_initial_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.
    const INITIAL: u64 = 0xEFFF_FFFC;
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == INITIAL)
}

/// The descriptors that systemd has passed to this process, with their names
/// (`sd_listen_fds_with_names(3)`). Only the first call returns them.
///
/// # Errors
/// When the environment says nonsense.
pub fn passed_descriptors() -> io::Result<Vec<(String, OwnedFd)>> {
    static ARE_TAKEN: AtomicBool = AtomicBool::new(false);
    if ARE_TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: they are passed to this process by its pid, and nobody else here owns them: this is the
    // first call.
    Ok(passed
        .map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) }))
        .collect())
}

/// Opens a kernfs node by its id, on the file system that `mount` lies on.
///
/// The handle is the one that `kernfs_encode_fh` makes (Linux 5.5):
/// `FILEID_KERNFS` and the 64-bit id.
///
/// # Errors
/// ESTALE when there is no such node any more; EPERM without
/// `CAP_DAC_READ_SEARCH`.
pub(crate) fn open_kernfs_node(mount: &File, id: u64) -> io::Result<File> {
    const FILEID_KERNFS: i32 = 0xfe;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    let mut handle = Handle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: `Handle` is laid out as `struct file_handle` followed by as many
    // bytes as `bytes` says; it and the descriptor outlive the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}
