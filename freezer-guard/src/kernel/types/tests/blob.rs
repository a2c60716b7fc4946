//! Writes BTF: a small kernel that has all that we look at.
//! The format: Documentation/bpf/btf.rst.

use std::collections::BTreeMap;

use freezer_guard_abi::KernelOffsets;

use crate::{
    kernel::programs,
    quirks::{ALLOCATOR, FREEZER_ID, SET_BREAKPOINT},
};

/// The distance between two members, bytes.
const DISTANCE: u32 = 8;

/// The types so far. The first is an `int`.
pub(super) struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

/// The id of the `int`.
const INT: u32 = 1;

impl Blob {
    pub(super) fn new() -> Self {
        let mut blob = Self {
            types: Vec::new(),
            strings: vec![0],
            count: 0,
        };
        // Signed, 32 bits.
        blob.add("int", 1, 0, 4, &[1 << 24 | 32]);
        blob
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        // Each stands there once.
        let text = [b"\0", name.as_bytes(), b"\0"].concat();
        let mut windows = self.strings.windows(text.len());
        if let Some(place) = windows.position(|window| window == text) {
            return place as u32 + 1;
        }
        let place = self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        place
    }

    fn add(&mut self, name: &str, kind: u32, count: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, kind << 24 | count, size_or_type].iter().chain(rest) {
            self.types.extend(word.to_ne_bytes());
        }
        self.count += 1;
        self.count
    }

    /// `members`: name, type, offset in bits. With `bitfields` the offset has the size in its highest
    /// byte.
    pub(super) fn structure(
        &mut self,
        name: &str,
        members: &[(&str, u32, u32)],
        bitfields: bool,
    ) -> u32 {
        let mut rest = Vec::new();
        for (name, kind, bits) in members {
            rest.extend([self.name(name), *kind, *bits]);
        }
        let kind = if bitfields { 1 << 7 | 4 } else { 4 };
        self.add(name, kind, members.len() as u32, 4096, &rest)
    }

    pub(super) fn pointer(&mut self, to: u32) -> u32 {
        self.add("", 2, 0, to, &[])
    }

    pub(super) fn enumeration(&mut self, name: &str, constants: &[(&str, u32)]) -> u32 {
        let mut rest = Vec::new();
        for (name, value) in constants {
            rest.extend([self.name(name), *value]);
        }
        self.add(name, 6, constants.len() as u32, 4, &rest)
    }

    /// `constants`: name, value.
    pub(super) fn enumeration_64(&mut self, name: &str, constants: &[(&str, u64)]) -> u32 {
        let mut rest = Vec::new();
        for (name, value) in constants {
            rest.extend([self.name(name), *value as u32, (*value >> 32) as u32]);
        }
        self.add(name, 19, constants.len() as u32, 8, &rest)
    }

    pub(super) fn function(&mut self, name: &str, arguments: &[u32]) -> u32 {
        let mut rest = Vec::new();
        for argument in arguments {
            rest.extend([self.name("argument"), *argument]);
        }
        let prototype = self.add("", 13, arguments.len() as u32, INT, &rest);
        self.add(name, 12, 0, prototype, &[])
    }

    pub(super) fn array(&mut self, of: u32, length: u32) -> u32 {
        self.add("", 3, 0, 0, &[of, INT, length])
    }

    pub(super) fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.add(name, 8, 0, of, &[])
    }

    /// All that the programs read and are attached to, as Linux 6.18 has it.
    pub(super) fn kernel() -> Self {
        let mut blob = Self::new();
        let mut containers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (container, member) in KernelOffsets::FIELDS.iter().chain([&ALLOCATOR]) {
            // The first name of each.
            let member = member.split('|').next().unwrap_or_default();
            containers.entry(container).or_default().push(member);
        }
        let mut structs = BTreeMap::new();
        for (container, members) in &containers {
            let places = (0..).map(|index| 8 * DISTANCE * index);
            let members: Vec<_> = members
                .iter()
                .zip(places)
                .map(|(member, bits)| (*member, INT, bits))
                .collect();
            structs.insert(*container, blob.structure(container, &members, false));
        }
        let (name, constant) = FREEZER_ID;
        blob.enumeration(name, &[("cpuset_cgrp_id", 0), (constant, 7)]);
        blob.enumeration_64("wide", &[("WIDE", 1 << 40)]);
        let pointer = blob.pointer(structs[SET_BREAKPOINT.1]);
        for target in programs::targets() {
            match target.starts_with("btf_trace_") {
                true => blob.typedef(&target, INT),
                false => blob.function(&target, &[INT, pointer]),
            };
        }
        blob
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let length = |bytes: &[u8]| bytes.len() as u32;
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [
            24,
            0,
            length(&self.types),
            length(&self.types),
            length(&self.strings),
        ] {
            bytes.extend(word.to_ne_bytes());
        }
        [&bytes, &self.types[..], &self.strings[..]].concat()
    }
}
