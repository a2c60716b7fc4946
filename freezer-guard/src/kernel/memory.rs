//! What the maps take of the kernel's memory: those that grow with the number of guards,
//! and how much it is.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{maps::loaded_maps, programs::ProgramInfo};
use aya_obj::Map;
use freezer_guard_ebpf::{MAX_CANDIDATES, MAX_GUARDS, names};

use super::{Error, Locked, conditions, programs::PROGRAMS};

/// A map that has entries for each guard: their memory is taken when they are needed.
struct Growing {
    name: &'static str,
    /// How many entries each guard can have, on the average; and how many there are
    /// besides.
    each: u32,
    more: u32,
}

const GROWING: [Growing; 4] = [
    Growing {
        name: names::GUARDS,
        each: 1,
        more: 2 * MAX_CANDIDATES,
    },
    Growing {
        name: names::PLACES,
        each: 1,
        more: 0,
    },
    Growing {
        name: names::TARGETS,
        each: 2,
        more: 0,
    },
    Growing {
        name: names::ANCESTORS,
        each: 10,
        more: 0,
    },
];

/// How many guards there can be where the memory for all of them is taken at once.
const ALLOCATED_GUARDS: u32 = 1024;

/// The definition of a map as it is for this kernel: those that have entries for each
/// guard are as big as can be.
pub(super) fn sized(name: &str, definition: &Map) -> Map {
    /// `BPF_F_NO_PREALLOC`
    const BY_NEED: u32 = 1;
    // Before that, a program that allocates could come to harm.
    let (guards, flags) = match conditions::kernel_is_before(6, 1) {
        true => (ALLOCATED_GUARDS, 0),
        false => (MAX_GUARDS, BY_NEED),
    };
    match GROWING.iter().find(|map| map.name == name) {
        Some(map) => Map::new_from_params(
            definition.map_type(),
            definition.key_size(),
            definition.value_size(),
            map.more + map.each * guards,
            flags,
        ),
        None => definition.clone(),
    }
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
