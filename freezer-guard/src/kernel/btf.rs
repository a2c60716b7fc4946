//! Offsets of struct members, from the running kernel's BTF.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
};

use btf_rs::{Backend, Btf, Type};
use freezer_guard_ebpf::{KernelOffsets, NO_FREEZER};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Error;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's BTF, some MB that sysfs hands out page by page.
pub(super) fn read() -> Result<Vec<u8>, Error> {
    fs::read(VMLINUX).map_err(|error| Error::Missing {
        path: VMLINUX.into(),
        needed_for: "use a kernel built with CONFIG_DEBUG_INFO_BTF",
        error,
    })
}

/// What the programs have to know of the kernel with this BTF.
pub(super) struct Facts {
    pub(super) offsets: KernelOffsets,
    /// `freezer_cgrp_id`, or [`NO_FREEZER`].
    pub(super) freezer: u32,
    /// Whether there is the helper `bpf_task_pt_regs`, 0 or 1.
    pub(super) has_task_pt_regs: u32,
}

pub(super) fn facts(bytes: &[u8]) -> Result<Facts, Error> {
    let btf = parse(bytes)?;
    Ok(Facts {
        offsets: offsets(&btf)?,
        freezer: constant(&btf, "cgroup_subsys_id", "freezer_cgrp_id")?.unwrap_or(NO_FREEZER),
        has_task_pt_regs: constant(&btf, "bpf_func_id", "BPF_FUNC_task_pt_regs")?
            .is_some()
            .into(),
    })
}

/// Every field that the programs read and this kernel has not.
pub(super) fn missing_fields(bytes: &[u8]) -> Result<Vec<(&'static str, &'static str)>, Error> {
    let btf = parse(bytes)?;
    let mut missing = Vec::new();
    for (container, member) in KernelOffsets::FIELDS {
        match offset(&btf, container, member) {
            Ok(_) => {}
            Err(Error::Field(..)) => missing.push((*container, *member)),
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

/// The value of a constant of an enum.
fn constant(btf: &Btf, name: &str, member: &str) -> Result<Option<u32>, Error> {
    // A name that nothing has is an error to the crate.
    let Ok(candidates) = btf.resolve_types_by_name(name) else {
        return Ok(None);
    };
    for candidate in candidates {
        if let Type::Enum(constants) = candidate {
            for constant in &constants.members {
                if btf.resolve_name(constant)? == member {
                    return Ok(Some(constant.val()));
                }
            }
        }
    }
    Ok(None)
}

fn offsets(btf: &Btf) -> Result<KernelOffsets, Error> {
    KernelOffsets::resolve(|container, member| offset(btf, container, member))
}

/// The offset of a member, bytes.
fn offset(btf: &Btf, container: &'static str, member: &'static str) -> Result<u32, Error> {
    // A name that nothing has is an error to the crate.
    let candidates = btf.resolve_types_by_name(container).unwrap_or_default();
    // Several structs may share a name: ours is the one with the member.
    for candidate in candidates {
        if let Some(bits) = find(btf, candidate, member)? {
            return Ok(bits / 8);
        }
    }
    Err(Error::Field(container, member))
}

/// Of some 100,000 types we look at a few. Mapped, the others cost nothing; sysfs
/// cannot be mapped before 6.16, hence the copy.
fn parse(bytes: &[u8]) -> Result<Btf, Error> {
    let copied = || -> io::Result<File> {
        let mut file = File::from(memfd_create(c"btf", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(bytes)?;
        Ok(file)
    };
    let file = copied().map_err(Error::failed("copy the kernel's BTF"))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(Btf::from_file_with_backend(path, Backend::Mmap)?)
}

/// The offset of a member in bits, also inside anonymous structs and unions.
fn find(btf: &Btf, container: Type, member: &str) -> Result<Option<u32>, Error> {
    let (Type::Struct(fields) | Type::Union(fields)) = container else {
        return Ok(None);
    };
    for field in &fields.members {
        let name = btf.resolve_name(field).unwrap_or_default();
        if name == member {
            return Ok(Some(field.bit_offset()));
        }
        if name.is_empty()
            && let Some(inside) = find(btf, btf.resolve_chained_type(field)?, member)?
        {
            return Ok(Some(field.bit_offset() + inside));
        }
    }
    Ok(None)
}
