//! The system calls that need `unsafe`, as safe functions for single uses.

#![expect(
    unsafe_code,
    reason = "the one module of this crate that calls the kernel by hand"
)]

use std::{
    ffi::CStr,
    fs::File,
    io::{Error, Result},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    ptr,
};

use io_uring::{IoUring, opcode, squeue::Flags, types::Fd};
use nix::unistd::ForkResult;

/// Forks. The tool has no second thread when it does.
pub(crate) fn fork() -> Result<ForkResult> {
    // SAFETY: the callers are single-threaded, so the child finds no lock held
    // by a thread that it does not have.
    Ok(unsafe { nix::unistd::fork() }?)
}

fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn from_negative(result: i64) -> Result<()> {
    if result < 0 {
        let errno = i32::try_from(-result).unwrap_or(libc::EIO);
        return Err(Error::from_raw_os_error(errno));
    }
    Ok(())
}

/// `struct iocb` of `include/uapi/linux/aio_abi.h`, little endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event` of the same header.
#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// Writes with `io_submit(2)`.
pub(crate) fn aio_write(file: &File, bytes: &[u8]) -> Result<()> {
    const IOCB_CMD_PWRITE: u16 = 1;
    let mut context: libc::c_ulong = 0;
    let mut iocb = Iocb {
        opcode: IOCB_CMD_PWRITE,
        fd: u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX),
        buffer: bytes.as_ptr() as u64,
        length: bytes.len() as u64,
        ..Iocb::default()
    };
    let mut event = IoEvent::default();
    // SAFETY: the kernel writes one `c_ulong`, reads one pointer to an `Iocb`
    // laid out as it expects, and writes one `IoEvent`; `bytes` outlives the
    // operation because we wait for its event before we return.
    unsafe {
        check(libc::syscall(libc::SYS_io_setup, 1, &raw mut context))?;
        let mut list = [&raw mut iocb];
        check(libc::syscall(
            libc::SYS_io_submit,
            context,
            1,
            list.as_mut_ptr(),
        ))?;
        check(libc::syscall(
            libc::SYS_io_getevents,
            context,
            1,
            1,
            &raw mut event,
            ptr::null_mut::<libc::timespec>(),
        ))?;
    }
    from_negative(event.result)
}

/// Writes with io_uring; `asynchronous`: in a worker thread of the kernel.
pub(crate) fn io_uring_write(file: &File, bytes: &[u8], asynchronous: bool) -> Result<()> {
    let mut ring = IoUring::new(2)?;
    let length = u32::try_from(bytes.len()).map_err(Error::other)?;
    let mut entry = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), length).build();
    if asynchronous {
        entry = entry.flags(Flags::ASYNC);
    }
    // SAFETY: the buffer and the file outlive the operation: we wait for its
    // completion below.
    unsafe { ring.submission().push(&entry) }.map_err(Error::other)?;
    ring.submit_and_wait(1)?;
    let completion = ring
        .completion()
        .next()
        .ok_or_else(|| Error::other("no completion"))?;
    from_negative(i64::from(completion.result()))
}

/// A page that is never filled: whoever touches it waits, in the kernel, for as
/// long as the descriptor is open.
///
/// A write from it stalls inside the system call and cannot be frozen.
pub(crate) fn stalling_page() -> Result<(OwnedFd, &'static [u8])> {
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const API: u64 = 0xaa;
    const MODE_MISSING: u64 = 1;
    const SIZE: usize = 4096;
    // SAFETY: a fresh descriptor that nobody else owns; the ioctls read and
    // write three and four `u64`, as `struct uffdio_api` and `struct
    // uffdio_register` have; the mapping is private, never unmapped, and its
    // length is that of the slice, which is only ever handed to the kernel.
    unsafe {
        let raw = check(libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC))?;
        let fd = OwnedFd::from_raw_fd(i32::try_from(raw).map_err(Error::other)?);
        let mut api = [API, 0, 0];
        check(libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()).into())?;
        let page = libc::mmap(
            ptr::null_mut(),
            SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if page == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let mut register = [page as u64, SIZE as u64, MODE_MISSING, 0];
        check(libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()).into())?;
        Ok((fd, std::slice::from_raw_parts(page.cast::<u8>(), SIZE)))
    }
}

/// Fills the page of [`stalling_page`]: whoever waits for it goes on.
pub(crate) fn fill_page(userfault: &OwnedFd, page: &[u8], value: &[u8]) -> Result<()> {
    const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
    let mut source = vec![0_u8; page.len()];
    source[..value.len()].copy_from_slice(value);
    let mut copy = [
        page.as_ptr() as u64,
        source.as_ptr() as u64,
        page.len() as u64,
        0,
        0,
    ];
    // SAFETY: the ioctl reads and writes five `u64`, as `struct uffdio_copy` has;
    // `source` is as long as the page and outlives the call.
    check(unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_COPY, copy.as_mut_ptr()) }.into())?;
    Ok(())
}

/// Takes a task under ptrace without stopping it.
pub(crate) fn seize(pid: i32) -> Result<()> {
    // SAFETY: `PTRACE_SEIZE` takes numbers only.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) })?;
    Ok(())
}

/// Writes to another process's memory with `process_vm_writev(2)`.
pub(crate) fn write_memory(pid: i32, address: u64, bytes: &[u8]) -> Result<()> {
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: bytes.len(),
    };
    // SAFETY: the local range is that of `bytes`, which is only read; the kernel
    // checks the remote one.
    let written =
        unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    check(written as i64)?;
    Ok(())
}

/// A child that the kernel starts right in this cgroup (v2), and that ends at once.
pub(crate) fn clone_into(cgroup: &File) -> Result<()> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    /// `struct clone_args` of `include/uapi/linux/sched.h`.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let arguments = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as `fork`: the caller is single-threaded, and the child only exits.
    unsafe {
        let size = size_of::<CloneArgs>();
        let pid = check(libc::syscall(libc::SYS_clone3, &raw const arguments, size))?;
        if pid == 0 {
            libc::_exit(0);
        }
        libc::waitpid(pid as i32, ptr::null_mut(), 0);
    }
    Ok(())
}

/// Writes a buffer that another thread changes meanwhile.
pub(crate) fn write_flipping(
    file: &File,
    buffer: &[std::sync::atomic::AtomicU8; 16],
) -> Result<()> {
    // SAFETY: the buffer is there during the call; the kernel reads it as any other
    // memory that changes.
    check(unsafe { libc::write(file.as_raw_fd(), buffer.as_ptr().cast(), buffer.len()) } as i64)?;
    Ok(())
}

/// Writes bytes that nobody may look at, such as those of [`stalling_page`].
pub(crate) fn write_raw(fd: impl AsRawFd, bytes: &[u8]) -> Result<()> {
    // SAFETY: the range is mapped; the kernel alone reads it.
    check(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) } as i64)?;
    Ok(())
}

/// Writes these bytes, of one page, and a page behind them that nobody can read.
pub(crate) fn write_beyond(file: &File, page: &[u8]) -> Result<()> {
    let size = page.len();
    // SAFETY: the mapping is new, ours alone, and two pages long; the first half is filled
    // before the second is locked, and it goes before we return.
    unsafe {
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let start = libc::mmap(ptr::null_mut(), 2 * size, protection, anonymous, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        ptr::copy_nonoverlapping(page.as_ptr(), start.cast(), size);
        check(libc::mprotect(start.byte_add(size), size, libc::PROT_NONE).into())?;
        let written = libc::write(file.as_raw_fd(), start, 2 * size);
        let result = check(written as i64);
        check(libc::munmap(start, 2 * size).into())?;
        result.map(drop)
    }
}

/// Sends ourselves SIGALRM after this time, seconds.
pub(crate) fn alarm(seconds: u32) {
    // SAFETY: `alarm(2)` takes a number only.
    unsafe { libc::alarm(seconds) };
}

/// A descriptor for a process (`pidfd_open(2)`).
pub(crate) fn pidfd_open(pid: u32) -> Result<File> {
    // SAFETY: takes numbers only, and returns a descriptor that nobody else owns.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(File::from_raw_fd(i32::try_from(fd).map_err(Error::other)?))
    }
}

/// Opens a file of kernfs for writing by its id, on the file system that `directory` lies
/// on (`open_by_handle_at(2)`).
pub(crate) fn open_kernfs_node(directory: &File, id: u64) -> Result<File> {
    /// `FILEID_KERNFS` of `linux/exportfs.h`.
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
    // SAFETY: `Handle` is laid out as `struct file_handle` with as many bytes as it says; it
    // and the descriptor outlive the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            directory.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        )
    };
    check(fd.into())?;
    Ok(own(fd))
}

/// Takes a capability out of the bounding set: programs run from here on
/// cannot have it.
pub(crate) fn drop_capability(number: libc::c_ulong) -> Result<()> {
    // SAFETY: `prctl(PR_CAPBSET_DROP)` takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }.into())?;
    Ok(())
}

/// A descriptor that came with a message.
pub(crate) fn own(fd: i32) -> File {
    // SAFETY: the caller received it just now over a socket and knows no other owner.
    unsafe { File::from_raw_fd(fd) }
}

/// Opens a pinned BPF map.
pub(crate) fn open_map(pin: &CStr) -> Result<OwnedFd> {
    const BPF_OBJ_GET: i32 = 7;
    let fd = bpf(BPF_OBJ_GET, [pin.as_ptr() as u64, 0, 0, 0])?;
    Ok(own(fd as i32).into())
}

/// Makes an entry of zeros in a BPF map, or removes it. No value is longer than a page.
pub(crate) fn set_entry(map: &OwnedFd, key: u64, is_there: bool) -> Result<()> {
    const BPF_MAP_UPDATE_ELEM: i32 = 2;
    const BPF_MAP_DELETE_ELEM: i32 = 3;
    let value = [0u64; 512];
    let command = match is_there {
        true => BPF_MAP_UPDATE_ELEM,
        false => BPF_MAP_DELETE_ELEM,
    };
    let (key, value) = ((&raw const key) as u64, value.as_ptr() as u64);
    bpf(command, [map.as_raw_fd() as u64, key, value, 0]).map(drop)
}

/// `union bpf_attr` begins with these words.
fn bpf(command: i32, words: [u64; 4]) -> Result<libc::c_long> {
    // SAFETY: the callers pass pointers to what outlives the call and is as long as the kernel
    // takes it for.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(&words)) })
}
