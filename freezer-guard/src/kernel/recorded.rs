//! What a kernel's BTF says, as it is kept in a file for another machine.

use std::collections::BTreeMap;

use freezer_guard_abi::KernelOffsets;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::programs;
use crate::quirks::{ALLOCATOR, FREEZER_ID, KernelTypes, SET_BREAKPOINT, uprobes_take_vma};

/// The part of a kernel's BTF that freezer-guard looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "KernelTypes")]
pub struct RecordedTypes {
    /// The offset of each field in bytes, by struct and member, or null if the kernel lacks the field.
    /// Between names that a field has in several releases stands `|`.
    pub fields: BTreeMap<String, Option<u32>>,
    /// The value of each constant, by enum and constant, or null if the kernel lacks it.
    pub constants: BTreeMap<String, Option<u32>>,
    /// The BTF id of each function and tracepoint, or null if the kernel lacks it.
    pub targets: BTreeMap<String, Option<u32>>,
    /// Whether the functions for breakpoints of uprobes take a `vm_area_struct`.
    pub uprobes_take_vma: bool,
}

fn key(container: &str, member: &str) -> String {
    format!("{container}.{member}")
}

impl RecordedTypes {
    /// Records what these types say.
    pub(super) fn of(types: &dyn KernelTypes) -> Self {
        let fields = KernelOffsets::FIELDS.iter().chain([&ALLOCATOR]);
        let (name, constant) = FREEZER_ID;
        let targets = programs::targets().into_iter();
        Self {
            fields: fields
                .map(|(container, member)| {
                    (key(container, member), types.offset(container, member))
                })
                .collect(),
            constants: [(key(name, constant), types.constant(name, constant))].into(),
            targets: targets
                .map(|name| {
                    let id = types.target(&name);
                    (name, id)
                })
                .collect(),
            uprobes_take_vma: uprobes_take_vma(types),
        }
    }
}

#[cfg(test)]
impl RecordedTypes {
    /// The types of a kernel that has all that we look at.
    pub(crate) fn whole() -> Self {
        struct Whole;
        impl KernelTypes for Whole {
            fn offset(&self, _: &str, _: &str) -> Option<u32> {
                Some(8)
            }
            fn constant(&self, _: &str, _: &str) -> Option<u32> {
                Some(7)
            }
            fn takes(&self, _: &str, _: usize, _: &str) -> bool {
                true
            }
            fn target(&self, _: &str) -> Option<u32> {
                Some(1)
            }
        }
        Self::of(&Whole)
    }
}

impl KernelTypes for RecordedTypes {
    fn offset(&self, container: &str, member: &str) -> Option<u32> {
        self.fields.get(&key(container, member)).copied().flatten()
    }

    fn constant(&self, name: &str, constant: &str) -> Option<u32> {
        self.constants.get(&key(name, constant)).copied().flatten()
    }

    fn takes(&self, function: &str, argument: usize, name: &str) -> bool {
        (function, name) == SET_BREAKPOINT && argument == 1 && self.uprobes_take_vma
    }

    fn target(&self, name: &str) -> Option<u32> {
        self.targets.get(name).copied().flatten()
    }
}
