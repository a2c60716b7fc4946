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
}

pub(super) fn facts(bytes: &[u8]) -> Result<Facts, Error> {
    let btf = parse(bytes)?;
    Ok(Facts {
        offsets: offsets(&btf)?,
        freezer: freezer(&btf)?,
    })
}

/// The number of the v1 freezer among the controllers.
fn freezer(btf: &Btf) -> Result<u32, Error> {
    for candidate in btf.resolve_types_by_name("cgroup_subsys_id")? {
        if let Type::Enum(controllers) = candidate {
            for controller in &controllers.members {
                if btf.resolve_name(controller)? == "freezer_cgrp_id" {
                    return Ok(controller.val());
                }
            }
        }
    }
    Ok(NO_FREEZER)
}

fn offsets(btf: &Btf) -> Result<KernelOffsets, Error> {
    KernelOffsets::resolve(|container, member| {
        // Several structs may share a name: ours is the one with the member.
        for candidate in btf.resolve_types_by_name(container)? {
            if let Some(bits) = find(btf, candidate, member)? {
                return Ok(bits / 8);
            }
        }
        Err(Error::Field(container, member))
    })
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
