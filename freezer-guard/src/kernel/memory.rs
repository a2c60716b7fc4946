//! What the maps take of the kernel's memory: those that grow with the number of guards,
//! and how much it is.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, loaded_maps},
    programs::ProgramInfo,
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_HASH;
use freezer_guard_ebpf::{
    AncestorKey, CgroupKey, Guard, GuardId, MAX_CANDIDATES, MAX_GUARDS, names,
};

use super::{Error, Locked, conditions, programs::PROGRAMS};

/// A map that has entries for each guard: their memory is taken when they are needed.
struct Growing {
    name: &'static str,
    /// Sizes, bytes.
    key: usize,
    value: usize,
    /// How many entries each guard can have, on the average; and how many there are
    /// besides.
    each: u32,
    more: u32,
}

const GROWING: [Growing; 4] = [
    Growing {
        name: names::GUARDS,
        key: size_of::<GuardId>(),
        value: size_of::<Guard>(),
        each: 1,
        more: 2 * MAX_CANDIDATES,
    },
    Growing {
        name: names::PLACES,
        key: size_of::<u64>(),
        value: size_of::<GuardId>(),
        each: 1,
        more: 0,
    },
    Growing {
        name: names::TARGETS,
        key: size_of::<CgroupKey>(),
        value: size_of::<GuardId>(),
        each: 2,
        more: 0,
    },
    Growing {
        name: names::ANCESTORS,
        key: size_of::<AncestorKey>(),
        value: size_of::<GuardId>(),
        each: 10,
        more: 0,
    },
];

/// How many guards there can be where the memory for all of them is taken at once.
const ALLOCATED_GUARDS: u32 = 1024;

/// Creates the maps that have entries for each guard, and pins them in `dir`: their names
/// and pins.
pub(super) fn make_growing(dir: &Path) -> Result<Vec<(&'static str, PathBuf)>, Error> {
    /// `BPF_F_NO_PREALLOC`
    const BY_NEED: u32 = 1;
    // Before that, a program that allocates could come to harm.
    let (guards, flags) = match conditions::kernel_is_before(6, 1) {
        true => (ALLOCATED_GUARDS, 0),
        false => (MAX_GUARDS, BY_NEED),
    };
    let mut made = Vec::new();
    for map in &GROWING {
        let path = dir.join(map.name);
        let definition = aya_obj::Map::new_from_params(
            BPF_MAP_TYPE_HASH as u32,
            map.key as u32,
            map.value as u32,
            map.more + map.each * guards,
            flags,
        );
        MapData::create(definition, map.name, None)
            .map_err(|error| Error::object(error.into()))?
            .pin(&path)
            .map_err(Error::failed(format!("pin {}", path.display())))?;
        made.push((map.name, path));
    }
    Ok(made)
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
