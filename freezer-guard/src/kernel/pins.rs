//! What lies under `/sys/fs/bpf/freezer-guard`: put there before the first
//! guard, taken away after the last, by whoever holds the lock.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    programs::{Iter, RawTracePoint, links::FdLink},
};
use freezer_guard_ebpf::names;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use procfs::process::Process;

use super::{
    Error, Maps, btf,
    programs::{Hierarchies, PROGRAMS},
    readers,
};

/// The folder of our pins.
pub const PIN_DIR: &str = "/sys/fs/bpf/freezer-guard";
const BPFFS: &str = "/sys/fs/bpf";
const LSM_LIST: &str = "/sys/kernel/security/lsm";

/// The BPF object, for the verifier.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/freezer-guard.bpf.o"));

/// Pinned last and unpinned first: with it the pins are complete, and its name
/// tells from which object they were loaded.
const CONTROL: &str = concat!("control-", env!("FREEZER_GUARD_OBJECT_ID"));

/// The right to change what is pinned. User-space writers are one at a time.
#[derive(Debug)]
pub struct Locked {
    _lock: Flock<File>,
    dir: PathBuf,
}

impl Locked {
    /// Waits for the lock. Mounts bpffs if nobody has.
    ///
    /// # Errors
    /// Without the capabilities for BPF, or if bpffs cannot be used.
    pub fn wait() -> Result<Self, Error> {
        check_capabilities()?;
        mount_bpffs()?;
        let dir = PathBuf::from(PIN_DIR);
        let failed = |error| Error::Missing {
            path: PIN_DIR.into(),
            needed_for: "the guards' state is kept there",
            error,
        };
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let file = File::open(&dir).map_err(failed)?;
        if file.metadata().map_err(failed)?.uid() != 0 {
            return Err(failed(io::Error::other(
                "it does not belong to root: remove it",
            )));
        }
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed(errno.into()))?;
        Ok(Self { _lock: lock, dir })
    }

    /// The maps, if the BPF side is loaded. Removes what a crash during a load
    /// left, and what another version left that holds no guard.
    ///
    /// # Errors
    /// When another version holds guards, or pins cannot be used.
    pub fn open(&self) -> Result<Option<Maps>, Error> {
        if self.dir.join(CONTROL).exists() {
            return Maps::open(&self.dir, &self.dir.join(CONTROL)).map(Some);
        }
        if self.other_version_holds_guards() {
            return Err(Error::OtherVersion);
        }
        self.unload()?;
        Ok(None)
    }

    /// Whatever the version, its iterator lists the holders' threads.
    fn other_version_holds_guards(&self) -> bool {
        fs::read(self.dir.join(names::MEMBERS_ITER)).is_ok_and(|members| !members.is_empty())
    }

    /// Loads and pins everything, and attaches what every guard needs. Nothing
    /// stays if it fails.
    ///
    /// # Errors
    /// When the kernel cannot enforce a guard.
    pub fn load(&self) -> Result<Maps, Error> {
        check_lsm()?;
        let loaded = self.load_and_pin();
        if loaded.is_err() {
            self.unload()?;
        }
        loaded
    }

    fn load_and_pin(&self) -> Result<Maps, Error> {
        let bytes = btf::read()?;
        let facts = btf::facts(&bytes)?;
        let btf = Btf::parse(&bytes, Endianness::default())
            .map_err(Error::failed("parse the kernel's BTF"))?;
        let mut ebpf = self
            .loader()
            .btf(Some(&btf))
            .override_global(names::OFFSETS, &facts.offsets, true)
            .override_global(names::FREEZER, &facts.freezer, true)
            .load(OBJECT)
            .map_err(Error::failed("load the BPF object"))?;
        for name in [
            names::GUARDS,
            names::TARGETS,
            names::ANCESTORS,
            names::INTRUDERS,
            names::VIOLATORS,
        ] {
            let map = ebpf.map(name).ok_or_else(|| missing(name))?;
            let path = self.dir.join(name);
            map.pin(&path)
                .map_err(Error::failed(format!("pin {}", path.display())))?;
        }
        for program in &PROGRAMS {
            program.load(&mut ebpf, &btf, &self.dir)?;
        }
        self.attach_iter(&mut ebpf, &btf)?;
        let control: &mut RawTracePoint = program(&mut ebpf, names::CONTROL)?;
        control.load().map_err(Error::load(names::CONTROL))?;
        let path = self.dir.join(CONTROL);
        control
            .pin(&path)
            .map_err(Error::failed(format!("pin {}", path.display())))?;
        Maps::open(&self.dir, &path)
    }

    /// The readers' maps may be there already: they outlive the programs for as
    /// long as somebody follows the events.
    fn loader(&self) -> EbpfLoader<'static> {
        let mut loader = EbpfLoader::new();
        for name in [names::READERS, names::LOST] {
            loader.map_pin_path(name, self.dir.join(name));
        }
        loader
    }

    /// Creates and pins the readers' maps if they are not there.
    pub(super) fn make_readers(&self) -> Result<(), Error> {
        if self.dir.join(names::READERS).exists() && self.dir.join(names::LOST).exists() {
            return Ok(());
        }
        self.loader()
            .load(OBJECT)
            .map(drop)
            .map_err(Error::failed("make the maps for the readers of events"))
    }

    /// The folder of the pins.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Attaches what guards in these hierarchies need, if it is not attached.
    ///
    /// # Errors
    /// When the kernel does not attach a program.
    pub fn attach(&self, hierarchies: Hierarchies) -> Result<(), Error> {
        PROGRAMS
            .iter()
            .filter(|program| program.is_needed(hierarchies))
            .filter(|program| !program.link_pin(&self.dir).exists())
            .try_for_each(|program| program.attach(&self.dir))
    }

    /// Detaches what no guard in these hierarchies needs.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_unneeded(&self, hierarchies: Hierarchies) -> Result<(), Error> {
        PROGRAMS
            .iter()
            .filter(|program| !program.is_needed(hierarchies))
            .map(|program| program.link_pin(&self.dir))
            .filter(|pin| pin.exists())
            .try_for_each(fs::remove_file)
            .map_err(Error::failed(format!("remove pins in {PIN_DIR}")))
    }

    /// A pinned iterator runs whenever its file is read.
    fn attach_iter(&self, ebpf: &mut Ebpf, btf: &Btf) -> Result<(), Error> {
        let name = names::MEMBERS_ITER;
        let failed = || format!("attach the BPF iterator {name}");
        let program: &mut Iter = program(ebpf, name)?;
        program.load("task", btf).map_err(Error::load(name))?;
        let id = program.attach().map_err(Error::failed(failed()))?;
        let link = program.take_link(id).map_err(Error::failed(failed()))?;
        let link: FdLink = link.try_into().map_err(Error::failed(failed()))?;
        let path = self.dir.join(name);
        link.pin(&path)
            .map(drop)
            .map_err(Error::failed(format!("pin {}", path.display())))
    }

    /// Detaches and removes everything. Only the folder stays, and the maps of
    /// those who follow the events.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn unload(&self) -> Result<(), Error> {
        let failed = || Error::failed(format!("remove the pins in {PIN_DIR}"));
        let mut pins = fs::read_dir(&self.dir)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<io::Result<Vec<_>>>()
            })
            .map_err(failed())?;
        // The mark of completeness goes first.
        pins.sort_by_key(|path| !is_control(path));
        if readers::are_there() {
            let kept = [names::READERS, names::LOST].map(|name| self.dir.join(name));
            pins.retain(|path| !kept.contains(path));
        }
        for path in pins {
            fs::remove_file(&path).map_err(failed())?;
        }
        Ok(())
    }
}

fn is_control(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"control-"))
}

fn missing(name: &str) -> Error {
    Error::failed(format!("find {name}"))("the BPF object does not hold it")
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| missing(name))?
        .try_into()
        .map_err(Error::failed(format!("find the BPF program {name}")))
}

/// CAP_SYS_ADMIN, or CAP_BPF together with CAP_PERFMON (`capability.h`).
fn check_capabilities() -> Result<(), Error> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_PERFMON: u64 = 1 << 38;
    const CAP_BPF: u64 = 1 << 39;
    let effective = Process::myself()
        .and_then(|process| process.status())
        .map_err(Error::failed("read /proc/self/status"))?
        .capeff;
    let enough = effective & CAP_SYS_ADMIN != 0
        || effective & (CAP_BPF | CAP_PERFMON) == CAP_BPF | CAP_PERFMON;
    if enough {
        Ok(())
    } else {
        Err(Error::Permission)
    }
}

fn mount_bpffs() -> Result<(), Error> {
    let failed = |error| Error::Missing {
        path: BPFFS.into(),
        needed_for: "mount it: mount -t bpf bpf /sys/fs/bpf",
        error,
    };
    let kind = statfs(BPFFS)
        .map_err(|errno| failed(errno.into()))?
        .filesystem_type();
    if kind == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=700"),
    )
    .map_err(|errno| failed(errno.into()))
}

/// Without `bpf` in this list, loading and attaching succeed and enforce nothing.
fn check_lsm() -> Result<(), Error> {
    let list = fs::read_to_string(LSM_LIST).map_err(|error| Error::Missing {
        path: LSM_LIST.into(),
        needed_for: "mount it: mount -t securityfs securityfs /sys/kernel/security",
        error,
    })?;
    let list = list.trim();
    if list.split(',').any(|module| module == "bpf") {
        Ok(())
    } else {
        Err(Error::LsmInactive {
            active: list.to_owned(),
        })
    }
}
