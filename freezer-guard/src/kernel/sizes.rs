//! How big the maps are, and which of them grow by need.

use aya_obj::Map;
use freezer_guard_abi::{
    LogLevel, MAX_CANDIDATES, MAX_ENDED, MAX_GUARDS, MAX_INTRUDERS, MAX_MEMBERS, names,
};

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
/// `log`: how much the kernel side tells.
pub(super) fn sized(name: &str, definition: &Map, by_need: bool, log: LogLevel) -> Map {
    /// Of `linux/bpf.h`.
    const BPF_F_NO_PREALLOC: u32 = 1;
    if name == names::LOGS && log == LogLevel::Off {
        // Nothing is written. A ring has a page at least.
        return Map::new_from_params(definition.map_type(), 0, 0, procfs::page_size() as u32, 0);
    }
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
