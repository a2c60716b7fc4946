//! The maps, typed.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use freezer_guard_abi::{
    ASKED_FOR, AUTOMATIC, AncestorKey, CgroupKey, Enrolling, FileName, GuardEntry, GuardId,
    Intruder, IntruderKey, Level, Member, NO_ROOM,
    control::{self, Operation},
    names,
};

use super::{
    Error,
    prerequisites::PIN_DIR,
    report,
    table::{Map as _, Table},
};
use crate::sys;

/// The pinned maps of a loaded BPF side.
///
/// Those who write them hold [`Locked`](super::Locked).
#[derive(Debug)]
pub struct Maps {
    /// Every guard in force.
    pub guards: Table<GuardId, GuardEntry>,
    /// The targets.
    pub targets: Table<CgroupKey, GuardId>,
    /// The guards below each ancestor of a target.
    pub ancestors: Table<AncestorKey, GuardId>,
    /// Who was refused.
    pub intruders: Table<IntruderKey, Intruder>,
    /// Who got through.
    pub violators: Table<IntruderKey, Intruder>,
    /// The guards that have ended and of which nobody has read what became of them.
    pub ended: Table<GuardId, GuardEntry>,
    /// The names of the programs that are checkpointers.
    pub checkpointers: Table<FileName, u8>,
    /// The program that changes a guard.
    pub control: Control,
    /// The level that the programs were loaded for.
    level: Level,
}

/// The program `control`: see [`control`].
#[derive(Debug)]
pub struct Control(OwnedFd);

impl Control {
    /// Runs it on the calling thread, and returns its answer.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run(&self, operation: Operation, guard: GuardId, more: &[u64]) -> Result<u32, Error> {
        let mut words = [0; control::WORDS];
        words[..2].copy_from_slice(&[operation as u64, guard]);
        words[2..2 + more.len()].copy_from_slice(more);
        sys::test_run(&self.0, &words).map_err(Error::failed("run the BPF program control"))
    }
}

impl Maps {
    pub(super) fn open(level: Level, dir: &Path, control: &Path) -> Result<Self, Error> {
        Ok(Self {
            level,
            guards: Table::open(dir, names::GUARDS)?,
            targets: Table::open(dir, names::TARGETS)?,
            ancestors: Table::open(dir, names::ANCESTORS)?,
            intruders: Table::open(dir, names::INTRUDERS)?,
            violators: Table::open(dir, names::VIOLATORS)?,
            ended: Table::open(dir, names::ENDED)?,
            checkpointers: Table::open(dir, names::CHECKPOINTERS)?,
            control: sys::open_pin(control)
                .map(Control)
                .map_err(Error::failed(format!("open {}", control.display())))?,
        })
    }

    /// Sets what [`Operation::Begin`] begins with.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_asked_for(&self, entry: GuardEntry) -> Result<(), Error> {
        set(names::TEMPLATES, ASKED_FOR, entry)
    }

    /// The threads of all holders, or of one guard's.
    ///
    /// # Errors
    /// When the iterator cannot be read.
    pub fn members(&self, guard: Option<GuardId>) -> Result<Vec<Member>, Error> {
        let path = Path::new(PIN_DIR).join(names::MEMBERS_ITER);
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
            .filter(|member| guard.is_none_or(|guard| member.guard == guard))
            .collect())
    }

    /// Makes the process and all that come from it members of the guard: those
    /// that are there and are no members yet. Who starts meanwhile is found by the
    /// next look, or is a member by its parent.
    ///
    /// # Errors
    /// When the iterator cannot be read.
    pub fn enrol(&self, guard: GuardId, pid: u64) -> Result<(), Error> {
        let path = Path::new(PIN_DIR).join(names::ENROL_ITER);
        set(names::ENROLLING, 0, Enrolling { guard, pid })?;
        loop {
            let output =
                fs::read(&path).map_err(Error::failed(format!("read {}", path.display())))?;
            if output.contains(&NO_ROOM) {
                return Err(Error::failed("enrol the holder")("the map MEMBERS is full"));
            }
            if output.is_empty() {
                return Ok(());
            }
        }
    }

    /// What every automatic guard begins with; with no `members` there are none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_automatic(&self, template: GuardEntry) -> Result<(), Error> {
        set(names::TEMPLATES, AUTOMATIC, template)
    }

    /// Only programs with these names are checkpointers.
    ///
    /// # Errors
    /// When the map cannot be changed.
    pub fn set_checkpointers(&self, names: &[FileName]) -> Result<(), Error> {
        for (known, _) in self.checkpointers.entries()? {
            if !names.contains(&known) {
                self.checkpointers.remove(&known)?;
            }
        }
        names
            .iter()
            .try_for_each(|name| self.checkpointers.put(*name, 1))
    }

    /// The calls that programs have missed since they were loaded, and that may have been violations.
    ///
    /// # Errors
    /// When the kernel does not tell: then there may have been any number.
    pub fn missed(&self) -> Result<u64, Error> {
        report::missed(self.level, Path::new(PIN_DIR))
    }
}

/// Writes an entry of an array.
fn set<V: Pod>(name: &str, index: u32, value: V) -> Result<(), Error> {
    let mut map: Array<MapData, V> = open(Path::new(PIN_DIR), name, Map::Array)?
        .try_into()
        .map_err(Error::failed(format!("open the map {name}")))?;
    map.set(index, value, 0)
        .map_err(Error::failed(format!("change the map {name}")))
}

pub(super) fn open(dir: &Path, name: &str, kind: fn(MapData) -> Map) -> Result<Map, Error> {
    let path = dir.join(name);
    MapData::from_pin(&path)
        .map(kind)
        .map_err(Error::failed(format!("open {}", path.display())))
}
