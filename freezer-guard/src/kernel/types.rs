//! The types that a BTF blob describes, as far as this program looks at them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsRawFd as _,
};

use btf_rs::{Backend, Btf, Type};
use freezer_guard_abi::KernelOffsets;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Error, programs};
use crate::quirks::{ALLOCATOR, FREEZER_ID, KernelTypes};

/// The types, by their names. A kernel has some 100,000: one pass over them finds these.
pub(super) struct Types {
    btf: Btf,
    named: BTreeMap<String, Vec<(u32, Type)>>,
}

impl Types {
    /// Reads a BTF file.
    ///
    /// # Errors
    /// When it cannot be copied, or is no BTF that we can read. `missing`: the error for a file that
    /// cannot be read.
    pub(super) fn read(
        mut file: File,
        missing: impl FnOnce(io::Error) -> Error,
    ) -> Result<Self, Error> {
        // Mapped, the others cost little; sysfs cannot be mapped before 6.16, hence
        // the copy.
        let mut copied = || -> io::Result<File> {
            let mut copy = File::from(memfd_create(c"btf", MFdFlags::MFD_CLOEXEC)?);
            io::copy(&mut file, &mut copy)?;
            Ok(copy)
        };
        let copy = copied().map_err(missing)?;
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        Self::new(Btf::from_file_with_backend(path, Backend::Mmap)?)
    }

    /// Finds the types in it that we look at.
    ///
    /// # Errors
    /// When a type cannot be read.
    pub(super) fn new(btf: Btf) -> Result<Self, Error> {
        let targets = programs::targets();
        let wanted: BTreeSet<&str> = KernelOffsets::FIELDS
            .iter()
            .map(|(container, _)| *container)
            .chain([FREEZER_ID.0, ALLOCATOR.0])
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

    /// The offset of a member in bits; a `.` stands before a member of a member, `[N]` after an array of
    /// integers. A bit field is no member: the programs read whole bytes.
    fn find_path(&self, container: &Type, path: &str) -> Option<u32> {
        if let Some((array, index)) = path
            .strip_suffix(']')
            .and_then(|path| path.rsplit_once('['))
        {
            let (offset, Type::Array(array)) = self.find(container, array)? else {
                return None;
            };
            let element = self.size_of(Type::Array(array))?;
            return Some(offset + 8 * element * index.parse::<u32>().ok()?);
        }
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        let (offset, inner) = self.find(container, first)?;
        match rest {
            "" => Some(offset),
            rest => self.find_path(&inner, rest).map(|inside| offset + inside),
        }
    }

    /// The bytes of an integer, or of one element of an array of integers.
    fn size_of(&self, mut found: Type) -> Option<u32> {
        loop {
            found = match &found {
                Type::Int(found) => return found.size().try_into().ok(),
                Type::Array(array) => self.btf.resolve_chained_type(array).ok()?,
                Type::Typedef(typedef) => self.btf.resolve_chained_type(typedef).ok()?,
                _ => return None,
            }
        }
    }

    /// The offset of a member in bits and its type, also inside anonymous structs and unions.
    fn find(&self, container: &Type, member: &str) -> Option<(u32, Type)> {
        let (Type::Struct(fields) | Type::Union(fields)) = container else {
            return None;
        };
        fields.members.iter().find_map(|field| {
            let name = self.btf.resolve_name(field).unwrap_or_default();
            if name == member {
                let is_bit_field = field.bitfield_size().is_some_and(|bits| bits != 0);
                if is_bit_field || !field.bit_offset().is_multiple_of(8) {
                    return None;
                }
                let inner = self.btf.resolve_chained_type(field).ok()?;
                return Some((field.bit_offset(), inner));
            }
            if !name.is_empty() {
                return None;
            }
            let (inside, inner) = self.find(&self.btf.resolve_chained_type(field).ok()?, member)?;
            Some((field.bit_offset() + inside, inner))
        })
    }
}

impl KernelTypes for Types {
    fn offset(&self, container: &str, member: &str) -> Option<u32> {
        // Several structs may share a name: ours is the one with the member.
        self.named(container).find_map(|(_, found)| {
            let bits = member
                .split('|')
                .find_map(|path| self.find_path(found, path))?;
            Some(bits / 8)
        })
    }

    fn constant(&self, name: &str, constant: &str) -> Option<u32> {
        let is_it = |found: &dyn btf_rs::BtfType| {
            self.btf
                .resolve_name(found)
                .is_ok_and(|name| name == constant)
        };
        self.named(name).find_map(|(_, found)| match found {
            Type::Enum(found) => {
                let mut members = found.members.iter();
                members.find(|one| is_it(*one)).map(|one| one.val())
            }
            Type::Enum64(found) => {
                let mut members = found.members.iter();
                let value = members.find(|one| is_it(*one))?.val();
                value.try_into().ok()
            }
            _ => None,
        })
    }

    fn takes(&self, function: &str, argument: usize, name: &str) -> bool {
        self.argument(function, argument)
            .is_some_and(|found| found == name)
    }

    fn target(&self, name: &str) -> Option<u32> {
        let is_target = |found: &Type| matches!(found, Type::Func(_) | Type::Typedef(_));
        self.named(name)
            .find_map(|(id, found)| is_target(found).then_some(*id))
    }
}

#[cfg(test)]
mod tests;
