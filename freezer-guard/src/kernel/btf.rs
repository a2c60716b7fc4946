//! What the running kernel's BTF says: offsets of struct members, a few constants,
//! and the ids of what programs are attached to.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use freezer_guard_abi::{KernelOffsets, NO_FREEZER};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{
    Error,
    lock::{RUN_DIR, make_run_dir},
    object::OBJECT_ID,
    programs,
    types::Types,
};
use crate::quirks::{self, FREEZER_ID, KernelTypes, Kfuncs, MEMORY_OWNER};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

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
        let facts = Self::look_up(&Types::read(file, missing_btf)?)?;
        if let Some(key) = key {
            // Without it the next one looks them up again.
            let _ = Kept::new(key, &facts).write();
        }
        Ok(facts)
    }

    /// Looks them up in the BTF of a kernel.
    ///
    /// # Errors
    /// When it lacks a field without which there is no guard.
    pub(super) fn look_up(types: &dyn KernelTypes) -> Result<Self, Error> {
        let (name, constant) = FREEZER_ID;
        Ok(Self {
            offsets: KernelOffsets::resolve(|container, member| {
                match types.offset(container, member) {
                    Some(offset) => Ok(offset),
                    None if is_optional(types, container, member) => Ok(ABSENT),
                    None => Err(Error::Field(container, member)),
                }
            })?,
            freezer: types.constant(name, constant).unwrap_or(NO_FREEZER),
            probes_by_vma: quirks::uprobes_take_vma(types),
            allocates_by_need: quirks::maps_allocate_anywhere(types),
            targets: programs::targets()
                .into_iter()
                .filter_map(|name| types.target(&name).map(|id| (name, id)))
                .collect(),
        })
    }

    /// Returns an error if this kernel has no such field or constant, and does without it: see
    /// [`is_optional`].
    pub(super) fn expect(
        &self,
        (container, member): (&'static str, &'static str),
    ) -> Result<(), Error> {
        let mut fields = KernelOffsets::FIELDS.iter().zip(self.offsets.values());
        let is_absent = match (container, member) {
            FREEZER_ID => self.freezer == NO_FREEZER,
            field => fields.any(|(known, offset)| *known == field && offset == ABSENT),
        };
        match is_absent {
            true => Err(Error::Field(container, member)),
            false => Ok(()),
        }
    }

    /// The BTF id of a function, or of the type of a tracepoint.
    pub(super) fn target(&self, name: &str) -> Option<u32> {
        self.targets.get(name).copied()
    }

    /// See [`quirks::preemption_can_be_disabled`].
    pub(super) fn kfuncs(&self) -> Option<Kfuncs> {
        quirks::preemption_can_be_disabled(|name| self.target(name))
    }
}

/// Stands for the offset of a field that this kernel does not have.
const ABSENT: u32 = u32::MAX;

/// Returns whether guards do without the field on this kernel.
fn is_optional(types: &dyn KernelTypes, container: &str, member: &str) -> bool {
    match container {
        "freezer" => quirks::lacks_v1_freezer(types),
        _ => (container, member) == MEMORY_OWNER && quirks::lacks_memory_owner(types),
    }
}

/// The types of the running kernel.
///
/// # Errors
/// When the kernel has no BTF, or none that we can read.
pub(super) fn of_kernel() -> Result<Types, Error> {
    Types::read(open()?, missing_btf)
}

/// Every field that a kernel has not, and without which there is no guard.
pub(super) fn missing_fields(types: &dyn KernelTypes) -> Vec<(&'static str, &'static str)> {
    let fields = KernelOffsets::FIELDS.iter().copied();
    fields
        .filter(|(container, member)| {
            types.offset(container, member).is_none() && !is_optional(types, container, member)
        })
        .collect()
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
