//! What is measured.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use freezer_guard::cgroup::Version;
use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
        stat::stat,
    },
    unistd::{getpid, pipe},
};

use super::{
    Error,
    clock::{self, Effort, Sample},
};
use crate::fork::fork_and_exit;

/// How many directories deep the path is.
const DEPTH: usize = 16;

macro_rules! operations {
    ($($variant:ident = $name:literal,)+) => {
        /// What is measured.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Operation { $($variant,)+ }

        impl Operation {
            pub(super) const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// Its name in tables and JSON.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

operations! {
    ReadZero = "read /dev/zero",
    WriteNull = "write /dev/null",
    ReadTmpfs = "read tmpfs",
    WriteTmpfs = "write tmpfs",
    Pipe = "pipe ping",
    OpenClose = "open+close",
    Stat = "stat deep path",
    Kill = "signal",
    Fork = "fork+exit",
    Exec = "exec",
    WriteCgroup = "write unrelated cgroup file",
    WriteFreezer = "write unrelated freezer",
    WriteTarget = "write guarded freezer",
}

impl Operation {
    fn effort(self) -> Effort {
        let (batch, batches) = match self {
            Self::Fork | Self::Exec => (1, 401),
            Self::Stat | Self::WriteCgroup | Self::WriteFreezer | Self::WriteTarget => (20, 151),
            _ => (100, 301),
        };
        Effort { batch, batches }
    }
}

/// The files that it takes.
pub(super) struct Scene {
    zero: File,
    null: File,
    tmpfs: File,
    pipe: (File, File),
    deep: Deep,
    /// A program that ends at once.
    exit: File,
    /// A file of a cgroup that no guard covers, and a text for it.
    attribute: (File, &'static [u8]),
    elsewhere: File,
    target: File,
    /// What to write to a freezer.
    thawed: &'static [u8],
}

impl Scene {
    pub(super) fn new(version: Version, target: &Path, elsewhere: &Path) -> Result<Self, Error> {
        let (freezer, thawed, attribute, value): (_, &[u8], _, &[u8]) = match version {
            Version::V1 => ("freezer.state", b"THAWED", "notify_on_release", b"0"),
            Version::V2 => ("cgroup.freeze", b"0", "cgroup.max.depth", b"max"),
        };
        let open = |path: PathBuf, write: bool| {
            File::options()
                .read(!write)
                .write(write)
                .open(&path)
                .map_err(Error::operation(format!("open {}", path.display())))
        };
        let in_memory = |flags, bytes: &[u8]| -> io::Result<File> {
            let mut file = File::from(memfd_create(c"freezer-guard-bench", flags)?);
            file.write_all(bytes)?;
            Ok(file)
        };
        let made = || Error::operation("make a file in memory");
        let (read, write) = pipe()
            .map_err(io::Error::from)
            .map_err(Error::operation("make a pipe"))?;
        Ok(Self {
            zero: open("/dev/zero".into(), false)?,
            null: open("/dev/null".into(), true)?,
            tmpfs: in_memory(MFdFlags::MFD_CLOEXEC, &[0; 4096]).map_err(made())?,
            pipe: (read.into(), write.into()),
            deep: Deep::new()?,
            exit: in_memory(MFdFlags::empty(), &EXIT).map_err(made())?,
            attribute: (open(elsewhere.join(attribute), true)?, value),
            elsewhere: open(elsewhere.join(freezer), true)?,
            target: open(target.join(freezer), true)?,
            thawed,
        })
    }

    /// `guarded`: a write to the target has to be refused.
    pub(super) fn measure(&mut self, operation: Operation, guarded: bool) -> Result<Sample, Error> {
        let byte = &mut [0_u8];
        let result = {
            let time =
                |run: &mut dyn FnMut() -> io::Result<()>| clock::measure(operation.effort(), run);
            match operation {
                Operation::ReadZero => time(&mut || self.zero.read(byte).map(drop)),
                Operation::WriteNull => time(&mut || self.null.write(byte).map(drop)),
                Operation::ReadTmpfs => time(&mut || self.tmpfs.read_at(byte, 0).map(drop)),
                Operation::WriteTmpfs => time(&mut || self.tmpfs.write_at(byte, 0).map(drop)),
                Operation::Pipe => time(&mut || {
                    self.pipe.1.write_all(byte)?;
                    self.pipe.0.read_exact(byte)
                }),
                Operation::OpenClose => time(&mut || File::open("/dev/null").map(drop)),
                Operation::Stat => time(&mut || Ok(stat(&self.deep.path).map(drop)?)),
                Operation::Kill => {
                    let own = getpid();
                    // By default it is ignored.
                    time(&mut || Ok(kill(own, Signal::SIGURG)?))
                }
                Operation::Fork => time(&mut fork_and_exit),
                Operation::Exec => {
                    let path = format!("/proc/self/fd/{}", self.exit.as_raw_fd());
                    time(&mut || match Command::new(&path).status()?.success() {
                        true => Ok(()),
                        false => Err(io::Error::other("it has failed")),
                    })
                }
                Operation::WriteCgroup => {
                    let (file, value) = &self.attribute;
                    time(&mut || file.write_at(value, 0).map(drop))
                }
                Operation::WriteFreezer => {
                    time(&mut || self.elsewhere.write_at(self.thawed, 0).map(drop))
                }
                Operation::WriteTarget => {
                    time(&mut || match self.target.write_at(self.thawed, 0) {
                        Err(error) if guarded && error.kind() == io::ErrorKind::ResourceBusy => {
                            Ok(())
                        }
                        Ok(_) if guarded => Err(io::Error::other("it was not refused")),
                        written => written.map(drop),
                    })
                }
            }
        };
        result.map_err(Error::operation(operation.name()))
    }
}

/// A path through many directories.
struct Deep {
    top: PathBuf,
    path: PathBuf,
}

impl Deep {
    fn new() -> Result<Self, Error> {
        let top = std::env::temp_dir().join(format!("freezer-guard-bench-{}", std::process::id()));
        let path: PathBuf = std::iter::once(top.clone())
            .chain((1..DEPTH).map(|number| format!("folder-{number}").into()))
            .collect();
        let failed = || Error::operation(format!("create {}", path.display()));
        // Nobody else has made it: others may write there too.
        fs::create_dir(&top).map_err(failed())?;
        let made = Self {
            top,
            path: path.clone(),
        };
        fs::create_dir_all(&made.path).map_err(failed())?;
        Ok(made)
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        // It is empty, and does no harm.
        let _ = fs::remove_dir_all(&self.top);
    }
}

/// `exit_group(0)`: `mov edi, 0; mov eax, 231; syscall`.
#[cfg(target_arch = "x86_64")]
const EXIT_CODE: (u16, [u32; 3]) = (libc::EM_X86_64, [0x0000_00bf, 0x00e7_b800, 0x050f_0000]);
/// `exit_group(0)`: `mov x0, #0; mov x8, #94; svc #0`.
#[cfg(target_arch = "aarch64")]
const EXIT_CODE: (u16, [u32; 3]) = (libc::EM_AARCH64, [0xd280_0000, 0xd280_0bc8, 0xd400_0001]);

/// An ELF program (elf(5)) of one segment: its own headers, and [`EXIT_CODE`].
const EXIT: [u8; 132] = {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 0x78;
    let mut file = [0; 132];
    let mut at = 0;
    macro_rules! put {
        ($value:expr) => {{
            let bytes = $value.to_le_bytes();
            let mut index = 0;
            while index < bytes.len() {
                file[at] = bytes[index];
                at += 1;
                index += 1;
            }
        }};
    }
    // e_ident: magic, 64 bits, little endian, version 1.
    put!(0x0001_0102_464c_457f_u64);
    put!(0_u64);
    // e_type, e_machine, e_version: an executable for this machine.
    put!(2_u16);
    put!(EXIT_CODE.0);
    put!(1_u32);
    // e_entry, e_phoff, e_shoff, e_flags
    put!(BASE + HEADERS);
    put!(0x40_u64);
    put!(0_u64);
    put!(0_u32);
    // e_ehsize, e_phentsize, e_phnum, and no sections.
    put!(0x40_u16);
    put!(0x38_u16);
    put!(1_u16);
    put!(0_u16);
    put!(0_u16);
    put!(0_u16);
    // p_type, p_flags: PT_LOAD, to be read and executed.
    put!(1_u32);
    put!(5_u32);
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    put!(0_u64);
    put!(BASE);
    put!(BASE);
    put!(132_u64);
    put!(132_u64);
    put!(0x1000_u64);
    put!(EXIT_CODE.1[0]);
    put!(EXIT_CODE.1[1]);
    put!(EXIT_CODE.1[2]);
    assert!(at == file.len());
    file
};

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

    #[test]
    fn the_program_ends_well() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("exit");
        fs::write(&path, super::EXIT).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
        assert!(Command::new(path).status().expect("it runs").success());
    }
}
