//! The maps, typed.

use std::{fs, io, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
    programs::{RawTracePoint, TestRun as _},
};
use freezer_guard_ebpf::{
    AncestorKey, CgroupKey, Enrolling, Guard, GuardId, Intruder, IntruderKey, Member, NO_ROOM,
    names,
};

use super::{Error, programs};

/// The pinned maps of a loaded BPF side.
///
/// Those who write them hold [`Locked`](super::Locked).
#[derive(Debug)]
pub struct Maps {
    /// Every guard in force.
    pub guards: HashMap<MapData, GuardId, Guard>,
    /// The targets.
    pub targets: HashMap<MapData, CgroupKey, GuardId>,
    /// The guards below each ancestor of a target.
    pub ancestors: HashMap<MapData, AncestorKey, GuardId>,
    /// Who was refused.
    pub intruders: HashMap<MapData, IntruderKey, Intruder>,
    /// Who got through.
    pub violators: HashMap<MapData, IntruderKey, Intruder>,
    /// The guards that have ended and of which nobody has read what became of them.
    pub ended: HashMap<MapData, GuardId, Guard>,
    control: RawTracePoint,
}

impl Maps {
    pub(super) fn open(dir: &Path, control: &Path) -> Result<Self, Error> {
        Ok(Self {
            guards: hash_map(dir, names::GUARDS)?,
            targets: hash_map(dir, names::TARGETS)?,
            ancestors: hash_map(dir, names::ANCESTORS)?,
            intruders: hash_map(dir, names::INTRUDERS)?,
            violators: hash_map(dir, names::VIOLATORS)?,
            ended: hash_map(dir, names::ENDED)?,
            control: RawTracePoint::from_pin(control)
                .map_err(Error::failed(format!("open {}", control.display())))?,
        })
    }

    /// Runs the program `control` on the calling thread: its answer is one of
    /// `freezer_guard_ebpf::control`'s, where its arguments are described too.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn control(&self, operation: u64, guard: GuardId, more: &[u64]) -> Result<u32, Error> {
        let mut options = aya::programs::RawTracePointRunOptions::default();
        options.args[..2].copy_from_slice(&[operation, guard]);
        options.args[2..2 + more.len()].copy_from_slice(more);
        self.control
            .test_run(options)
            .map(|result| result.return_value)
            .map_err(Error::failed("run the BPF program control"))
    }

    /// The threads of all holders, or of one guard's.
    ///
    /// # Errors
    /// When the iterator cannot be read.
    pub fn members(&self, guard: GuardId) -> Result<Vec<Member>, Error> {
        let path = Path::new(super::PIN_DIR).join(names::MEMBERS_ITER);
        let bytes = match fs::read(&path) {
            // Unloaded meanwhile, after the last guard.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes.map_err(Error::failed(format!("read {}", path.display())))?,
        };
        let word = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        Ok(bytes
            .chunks_exact(size_of::<Member>())
            .map(|bytes| Member {
                guard: word(&bytes[..8]),
                pid: word(&bytes[8..12]) as u32,
                tid: word(&bytes[12..]) as u32,
            })
            .filter(|member| member.guard == guard)
            .collect())
    }

    /// Makes the process and all that come from it members of the guard: those
    /// that are there and are no members yet. Who starts meanwhile is found by the
    /// next look, or is a member by its parent.
    ///
    /// # Errors
    /// When the iterator cannot be read.
    pub fn enrol(&mut self, guard: GuardId, pid: u64) -> Result<(), Error> {
        let path = Path::new(super::PIN_DIR).join(names::ENROL_ITER);
        set_only(names::ENROLLING, Enrolling { guard, pid })?;
        loop {
            let said =
                fs::read(&path).map_err(Error::failed(format!("read {}", path.display())))?;
            if said.contains(&NO_ROOM) {
                return Err(Error::failed("enrol the holder")("the map MEMBERS is full"));
            }
            if said.is_empty() {
                return Ok(());
            }
        }
    }

    /// What every automatic guard begins with; with no `members` there are none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_automatic(&mut self, template: Guard) -> Result<(), Error> {
        set_only(names::AUTOMATIC, template)
    }

    /// The calls that the tripwires for ptrace have missed since they were loaded.
    ///
    /// # Errors
    /// When the kernel does not tell: then there may have been any number.
    pub fn missed(&self) -> Result<u64, Error> {
        programs::missed(Path::new(super::PIN_DIR))
    }

    /// Whether the guard is in force.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn guard(&self, id: GuardId) -> Result<Option<Guard>, Error> {
        match self.guards.get(&id, 0) {
            Ok(guard) => Ok(Some(guard).filter(|guard| guard.flags & Guard::OVER == 0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::failed("read the map GUARDS")(error)),
        }
    }
}

/// Writes the only entry of a map.
fn set_only<V: Pod>(name: &str, value: V) -> Result<(), Error> {
    let mut map: Array<MapData, V> = open(Path::new(super::PIN_DIR), name, Map::Array)?
        .try_into()
        .map_err(Error::failed(format!("open the map {name}")))?;
    map.set(0, value, 0)
        .map_err(Error::failed(format!("change the map {name}")))
}

fn hash_map<K: Pod, V: Pod>(dir: &Path, name: &str) -> Result<HashMap<MapData, K, V>, Error> {
    open(dir, name, Map::HashMap)?
        .try_into()
        .map_err(Error::failed(format!("open the map {name}")))
}

pub(super) fn open(dir: &Path, name: &str, kind: fn(MapData) -> Map) -> Result<Map, Error> {
    let path = dir.join(name);
    MapData::from_pin(&path)
        .map(kind)
        .map_err(Error::failed(format!("open {}", path.display())))
}
