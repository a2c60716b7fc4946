//! The memory that the programs and their maps take.

use std::collections::BTreeSet;

use aya::{maps::loaded_maps, programs::ProgramInfo};

use super::{Error, pins::Locked, programs::PROGRAMS};
use crate::sys;

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
        let pins = PROGRAMS.iter().flat_map(|program| program.pins(self.dir()));
        for pin in pins.map(|(pin, _)| pin).filter(|pin| pin.exists()) {
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
                let locked = sys::fdinfo(fd, "memlock").map_err(Error::failed(DOING))?;
                memory.maps += locked.ok_or_else(|| {
                    Error::failed(DOING)("the kernel does not tell what a map takes")
                })?;
            }
        }
        Ok(memory)
    }
}
