//! What the running kernel's BTF says: offsets of struct members, a few constants,
//! and the ids of what programs are attached to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use btf_rs::{Backend, Btf, Type};
use freezer_guard_abi::{KernelOffsets, NO_FREEZER};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{
    Error,
    lock::{RUN_DIR, make_run_dir},
    object::OBJECT_ID,
    programs::{self, MEMORY_OWNER},
};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The enum of the cgroup controllers.
const SUBSYSTEMS: &str = "cgroup_subsys_id";
/// The function that sets the breakpoint of a uprobe.
const SET_BREAKPOINT: &str = "set_swbp";
/// The kernel's hash map, and its own allocator, which it has since programs may allocate
/// wherever they run (Linux 6.1).
const HASH_MAP: &str = "bpf_htab";
const ALLOCATOR: &str = "ma";

/// What the programs have to know of the running kernel, and where they go.
pub(super) struct Facts {
    pub(super) offsets: KernelOffsets,
    /// `freezer_cgrp_id`, or [`NO_FREEZER`].
    pub(super) freezer: u32,
    /// See [`names::PROBES_BY_VMA`](freezer_guard_abi::names::PROBES_BY_VMA).
    pub(super) probes_by_vma: bool,
    /// Whether programs may allocate wherever they run.
    pub(super) allocates_by_need: bool,
    /// What programs are attached to, as far as this kernel has it.
    targets: BTreeMap<String, u32>,
}

impl Facts {
    /// Looks them up, once after each boot.
    ///
    /// # Errors
    /// When the kernel has no BTF, or lacks something that the programs read.
    pub(super) fn of_kernel() -> Result<Self, Error> {
        let file = open()?;
        let key = Key::of(&file);
        if let Some(kept) = key.as_ref().and_then(Kept::read) {
            return Ok(kept);
        }
        let facts = Self::look_up(&Types::read(file)?)?;
        if let Some(key) = key {
            // Without it the next one looks them up again.
            let _ = Kept::new(key, &facts).write();
        }
        Ok(facts)
    }

    fn look_up(types: &Types) -> Result<Self, Error> {
        let freezer = types.freezer()?;
        Ok(Self {
            offsets: KernelOffsets::resolve(|container, member| {
                match types.offset(container, member) {
                    Err(Error::Field(..)) if is_optional(container, member, freezer) => Ok(ABSENT),
                    found => found,
                }
            })?,
            freezer,
            probes_by_vma: types.takes(SET_BREAKPOINT, 1, "vm_area_struct"),
            allocates_by_need: types.offset(HASH_MAP, ALLOCATOR).is_ok(),
            targets: types.targets(),
        })
    }

    /// Returns an error if this kernel has no such field, and does without it: see [`is_optional`].
    pub(super) fn expect(
        &self,
        (container, member): (&'static str, &'static str),
    ) -> Result<(), Error> {
        let fields = KernelOffsets::FIELDS.iter().zip(self.offsets.values());
        match fields
            .into_iter()
            .any(|(field, offset)| *field == (container, member) && offset == ABSENT)
        {
            true => Err(Error::Field(container, member)),
            false => Ok(()),
        }
    }

    /// The BTF id of a function, or of the type of a tracepoint.
    pub(super) fn target(&self, name: &str) -> Option<u32> {
        self.targets.get(name).copied()
    }
}

/// Stands for the offset of a field that this kernel does not have.
const ABSENT: u32 = u32::MAX;

/// Returns whether guards do without the field: no kernel without memory cgroups knows the owner
/// of an address space, and one without the freezer of cgroup v1 has nothing of it to look at.
fn is_optional(container: &str, member: &str, freezer: u32) -> bool {
    match container {
        "freezer" => freezer == NO_FREEZER,
        _ => (container, member) == MEMORY_OWNER,
    }
}

/// Every field that this kernel has not, and without which there is no guard.
pub(super) fn missing_fields() -> Result<Vec<(&'static str, &'static str)>, Error> {
    let types = Types::read(open()?)?;
    let freezer = types.freezer()?;
    let mut missing = Vec::new();
    for (container, member) in KernelOffsets::FIELDS {
        match types.offset(container, member) {
            Ok(_) => {}
            Err(Error::Field(..)) if is_optional(container, member, freezer) => {}
            Err(Error::Field(..)) => missing.push((*container, *member)),
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

fn open() -> Result<File, Error> {
    File::open(VMLINUX).map_err(missing_btf)
}

fn missing_btf(error: io::Error) -> Error {
    Error::Missing {
        path: VMLINUX.into(),
        needed_for: "use a kernel built with CONFIG_DEBUG_INFO_BTF",
        error,
    }
}

/// The types of the kernel that we look at, by their names. There are some
/// 100,000: one pass over them finds these.
struct Types {
    btf: Btf,
    named: BTreeMap<String, Vec<(u32, Type)>>,
}

impl Types {
    fn read(mut file: File) -> Result<Self, Error> {
        // Mapped, the others cost little; sysfs cannot be mapped before 6.16, hence
        // the copy.
        let mut copied = || -> io::Result<File> {
            let mut copy = File::from(memfd_create(c"btf", MFdFlags::MFD_CLOEXEC)?);
            io::copy(&mut file, &mut copy)?;
            Ok(copy)
        };
        let copy = copied().map_err(missing_btf)?;
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let btf = Btf::from_file_with_backend(path, Backend::Mmap)?;
        let targets = programs::targets();
        let wanted: BTreeSet<&str> = KernelOffsets::FIELDS
            .iter()
            .map(|(container, _)| *container)
            .chain([SUBSYSTEMS, HASH_MAP])
            .chain(targets.iter().map(String::as_str))
            .collect();
        let mut named: BTreeMap<String, Vec<(u32, Type)>> = BTreeMap::new();
        let (first, last) = btf.base().type_id_range();
        for id in first..=last {
            let found = btf.resolve_type_by_id(id)?;
            let Some(name) = found
                .as_btf_type()
                .and_then(|found| btf.resolve_name(found).ok())
            else {
                continue;
            };
            if wanted.contains(&*name) {
                named.entry(name).or_default().push((id, found));
            }
        }
        Ok(Self { btf, named })
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &(u32, Type)> {
        self.named.get(name).into_iter().flatten()
    }

    /// What a program can be attached to.
    fn targets(&self) -> BTreeMap<String, u32> {
        let is_target = |found: &Type| matches!(found, Type::Func(_) | Type::Typedef(_));
        programs::targets()
            .into_iter()
            .filter_map(|name| {
                let id = self
                    .named(&name)
                    .find_map(|(id, found)| is_target(found).then_some(*id))?;
                Some((name, id))
            })
            .collect()
    }

    /// The value of a constant of an enum.
    fn constant(&self, name: &str, member: &str) -> Result<Option<u32>, Error> {
        for (_, found) in self.named(name) {
            if let Type::Enum(constants) = found {
                for constant in &constants.members {
                    if self.btf.resolve_name(constant)? == member {
                        return Ok(Some(constant.val()));
                    }
                }
            }
        }
        Ok(None)
    }

    /// `freezer_cgrp_id`, or [`NO_FREEZER`].
    fn freezer(&self) -> Result<u32, Error> {
        let found = self.constant(SUBSYSTEMS, "freezer_cgrp_id")?;
        Ok(found.unwrap_or(NO_FREEZER))
    }

    /// Returns whether a function's argument is a pointer to this struct.
    fn takes(&self, function: &str, argument: usize, name: &str) -> bool {
        self.argument(function, argument)
            .is_some_and(|found| found == name)
    }

    /// The name of the struct that a function's argument points to.
    fn argument(&self, function: &str, argument: usize) -> Option<String> {
        let mut named = self.named(function).map(|(_, found)| found);
        let function = named.find_map(|found| match found {
            Type::Func(function) => Some(function),
            _ => None,
        })?;
        let Type::FuncProto(prototype) = self.btf.resolve_chained_type(function).ok()? else {
            return None;
        };
        let parameter = prototype.parameters.get(argument)?;
        let Type::Ptr(pointer) = self.btf.resolve_chained_type(parameter).ok()? else {
            return None;
        };
        match self.btf.resolve_chained_type(&pointer).ok()? {
            Type::Struct(found) => self.btf.resolve_name(&found).ok(),
            _ => None,
        }
    }

    /// The offset of a member, bytes. Between names that it has in several releases
    /// stands `|`.
    fn offset(&self, container: &'static str, member: &'static str) -> Result<u32, Error> {
        // Several structs may share a name: ours is the one with the member.
        for (_, found) in self.named(container) {
            for path in member.split('|') {
                if let Some(bits) = self.find_path(found, path)? {
                    return Ok(bits / 8);
                }
            }
        }
        Err(Error::Field(container, member))
    }

    /// The offset of a member in bits; a `.` stands before a member of a member.
    fn find_path(&self, container: &Type, path: &str) -> Result<Option<u32>, Error> {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        match self.find(container, first)? {
            Some((offset, _)) if rest.is_empty() => Ok(Some(offset)),
            Some((offset, inner)) => {
                let inside = self.find_path(&inner, rest)?;
                Ok(inside.map(|inside| offset + inside))
            }
            None => Ok(None),
        }
    }

    /// The offset of a member in bits and its type, also inside anonymous structs and unions.
    fn find(&self, container: &Type, member: &str) -> Result<Option<(u32, Type)>, Error> {
        let (Type::Struct(fields) | Type::Union(fields)) = container else {
            return Ok(None);
        };
        for field in &fields.members {
            let name = self.btf.resolve_name(field).unwrap_or_default();
            if name == member {
                let inner = self.btf.resolve_chained_type(field)?;
                return Ok(Some((field.bit_offset(), inner)));
            }
            if name.is_empty()
                && let Some((inside, inner)) =
                    self.find(&self.btf.resolve_chained_type(field)?, member)?
            {
                return Ok(Some((field.bit_offset() + inside, inner)));
            }
        }
        Ok(None)
    }
}

/// For which kernel, and which programs, something was looked up.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    object: String,
    /// The device and the inode of the BTF: another file may be mounted over it.
    file: (u64, u64),
}

impl Key {
    fn of(btf: &File) -> Option<Self> {
        let file = btf.metadata().ok()?;
        Some(Self {
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?,
            object: OBJECT_ID.to_owned(),
            file: (file.dev(), file.ino()),
        })
    }
}

/// What was looked up, as it is kept until the host is restarted.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: Key,
    /// In the order of [`KernelOffsets::FIELDS`].
    offsets: Vec<u32>,
    freezer: u32,
    probes_by_vma: bool,
    allocates_by_need: bool,
    targets: BTreeMap<String, u32>,
}

impl Kept {
    fn path() -> PathBuf {
        Path::new(RUN_DIR).join("btf.json")
    }

    fn new(key: Key, facts: &Facts) -> Self {
        Self {
            key,
            offsets: facts.offsets.values().to_vec(),
            freezer: facts.freezer,
            probes_by_vma: facts.probes_by_vma,
            allocates_by_need: facts.allocates_by_need,
            targets: facts.targets.clone(),
        }
    }

    fn read(key: &Key) -> Option<Facts> {
        let kept: Self = serde_json::from_slice(&fs::read(Self::path()).ok()?).ok()?;
        if kept.key != *key {
            return None;
        }
        let mut offsets = kept.offsets.into_iter();
        Some(Facts {
            offsets: KernelOffsets::resolve(|_, _| offsets.next().ok_or(())).ok()?,
            freezer: kept.freezer,
            probes_by_vma: kept.probes_by_vma,
            allocates_by_need: kept.allocates_by_need,
            targets: kept.targets,
        })
    }

    /// Whoever loads holds the lock: there is one writer.
    fn write(&self) -> io::Result<()> {
        make_run_dir()?;
        let mut file = NamedTempFile::new_in(RUN_DIR)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.persist(Self::path())?;
        Ok(())
    }
}
