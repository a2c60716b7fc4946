//! What the maps take of the kernel's memory: which of them grow by need, and how much it is.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{maps::loaded_maps, programs::ProgramInfo};
use aya_obj::Map;
use freezer_guard_ebpf::{
    MAX_CANDIDATES, MAX_ENDED, MAX_GUARDS, MAX_INTRUDERS, MAX_MEMBERS, names,
};

use super::{Error, Locked, programs::PROGRAMS};

/// A map that grows with what there is: its memory is taken when it is needed.
struct Growing {
    name: &'static str,
    /// How many entries each guard can have, on the average.
    each: u32,
    /// How many there can be besides.
    more: u32,
}

const fn growing(name: &'static str, each: u32, more: u32) -> Growing {
    Growing { name, each, more }
}

/// A hash table has as many buckets as it can have entries, to the next power of two, and
/// they take 16 bytes each, whatever is in it. So the most ancestors are 65,536.
const GROWING: [Growing; 7] = [
    growing(names::GUARDS, 1, 2 * MAX_CANDIDATES),
    growing(names::TARGETS, 2, 0),
    growing(names::ANCESTORS, 6, 5536),
    growing(names::MEMBERS, 0, MAX_MEMBERS),
    growing(names::ENDED, 0, MAX_ENDED),
    growing(names::INTRUDERS, 0, MAX_INTRUDERS),
    growing(names::VIOLATORS, 0, MAX_INTRUDERS),
];

/// How many guards, and members, there can be where the memory for all of them is taken at
/// once.
const ALLOCATED_GUARDS: u32 = 1024;
const ALLOCATED_MEMBERS: u32 = 16_384;

/// The definition of a map as it is for this kernel: those that grow are as big as can be.
/// `by_need`: whether a program may allocate wherever it runs (Linux 6.1).
pub(super) fn sized(name: &str, definition: &Map, by_need: bool) -> Map {
    /// Of `linux/bpf.h`.
    const BPF_F_NO_PREALLOC: u32 = 1;
    let Some(map) = GROWING.iter().find(|map| map.name == name) else {
        return definition.clone();
    };
    let (entries, flags) = match by_need {
        true => (map.more + map.each * MAX_GUARDS, BPF_F_NO_PREALLOC),
        false => {
            let more = map.more.min(ALLOCATED_MEMBERS);
            (more + map.each * ALLOCATED_GUARDS, 0)
        }
    };
    Map::new_from_params(
        definition.map_type(),
        definition.key_size(),
        definition.value_size(),
        entries,
        flags,
    )
}

/// What the kernel has taken for the programs and their maps, bytes, as it tells in
/// `/proc/PID/fdinfo`. (Before 6.4 it tells what a map takes when it is full.)
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Memory {
    /// For programs.
    pub programs: u64,
    /// For maps.
    pub maps: u64,
}

impl Locked {
    /// What is loaded takes so much.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn memory(&self) -> Result<Memory, Error> {
        const DOING: &str = "read what the programs take";
        let mut memory = Memory::default();
        let mut of_programs = BTreeSet::new();
        for program in &PROGRAMS {
            let pin = program.program_pin(self.dir());
            if !pin.exists() {
                continue;
            }
            let info = ProgramInfo::from_pin(&pin).map_err(Error::failed(DOING))?;
            let locked = info.memory_locked().map_err(Error::failed(DOING))?;
            memory.programs += u64::from(locked);
            let maps = info.map_ids().map_err(Error::failed(DOING))?;
            of_programs.extend(maps.unwrap_or_default());
        }
        for map in loaded_maps() {
            // Somebody else's may have gone.
            if let Ok(map) = map
                && of_programs.contains(&map.id())
            {
                let fd = map.fd().map_err(Error::failed(DOING))?;
                let info = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
                let info = fs::read_to_string(info).map_err(Error::failed(DOING))?;
                let locked = info.lines().find_map(|line| line.strip_prefix("memlock:"));
                let locked = locked.and_then(|bytes| bytes.trim().parse::<u64>().ok());
                memory.maps += locked.ok_or_else(|| {
                    Error::failed(DOING)("the kernel does not tell what a map takes")
                })?;
            }
        }
        Ok(memory)
    }
}
