//! The live proof that the kernel calls the programs. It keeps programs attached and calls none
//! of them while function tracing is off (`kernel.ftrace_enabled = 0`).

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
};

use freezer_guard_abi::{GuardEntry, GuardId, Level, Protection};
use nix::unistd::gettid;

use super::{Error, level, reconcile::hierarchies_in_use, store::GuardStore};
use crate::{
    cgroup::{self, Cgroup},
    kernel::Locked,
};

/// Below the level `enforce` a preemptible kernel leaves a program out now and then.
const ATTEMPTS: u32 = 3;

/// Returns whether the kernel calls the program that refuses writes to the freezers of this
/// guard's targets: a thread that does not belong to the holder writes what is no state. The
/// guard has to refuse that, and otherwise nothing changes.
///
/// `true` also if the guard refuses no such write.
///
/// # Errors
/// When there can be no such thread, or a freezer cannot be written.
pub(super) fn is_live(
    lock: &Locked,
    id: GuardId,
    entry: &GuardEntry,
    targets: &[&Cgroup],
) -> Result<bool, Error> {
    let level = entry.levels[Protection::Freeze as usize];
    if !GuardEntry::protects(entry.allowed, Protection::Freeze) || level <= Level::Detect as u32 {
        return Ok(true);
    }
    let freezers: Vec<_> = targets.iter().map(|cgroup| cgroup.freezer_file()).collect();
    thread::scope(|scope| {
        let prover = thread::Builder::new().name("prover".to_owned());
        let prover = prover.spawn_scoped(scope, || prove(lock, id, &freezers));
        let result = prover.map_err(Error::NoProof)?.join();
        result.unwrap_or_else(|_| Err(Error::NoProof(io::Error::other("a thread panicked"))))
    })
}

/// Proves it again before a guard ends that has been CHECKPOINTING, and that all its programs
/// are attached still. Records in its entry when nothing proves it.
pub(super) fn prove_end(
    lock: &Locked,
    store: &dyn GuardStore,
    id: GuardId,
    targets: &[&Cgroup],
) -> Result<(), Error> {
    let Some(entry) = store.guard(id)?.filter(|entry| entry.checkpointing_ns != 0) else {
        return Ok(());
    };
    // With other guards, other programs do the same.
    let levels = level::numbers(lock.levels(hierarchies_in_use(store)?));
    let is_attached = levels
        .iter()
        .zip(entry.levels)
        .all(|(now, then)| *now >= then);
    if !(is_attached && is_live(lock, id, &entry, targets).unwrap_or(false)) {
        store.set_flag(id, GuardEntry::UNPROVEN)?;
    }
    Ok(())
}

/// What that thread does. The lock is held, so there is one prover at a time.
fn prove(lock: &Locked, id: GuardId, freezers: &[PathBuf]) -> Result<bool, Error> {
    let Some(maps) = lock.open()? else {
        return Ok(false);
    };
    let store: &dyn GuardStore = &maps;
    // A child of the holder belongs to it.
    store.leave(id)?;
    store.set_prover(gettid().as_raw() as u64)?;
    let mut answers = Vec::new();
    for freezer in freezers {
        answers.push((0..ATTEMPTS).map(|_| write(freezer)).find(is_answer));
    }
    store.set_prover(0)?;
    for answer in answers {
        let Some(error) = answer else {
            return Ok(false);
        };
        // A cgroup that is gone cannot be disturbed any more.
        if !matches!(error.raw_os_error(), Some(libc::EBUSY)) && !cgroup::is_gone(&error) {
            return Err(Error::NoProof(error));
        }
    }
    Ok(true)
}

/// Whether it is another one than the kernel's own, which every attempt gets that nobody refuses.
fn is_answer(error: &io::Error) -> bool {
    error.raw_os_error() != Some(libc::EINVAL)
}

/// Returns why the write failed. It always does.
fn write(freezer: &Path) -> io::Error {
    const NO_STATE: &[u8] = b"?";
    let written = File::options()
        .write(true)
        .open(freezer)
        .and_then(|mut freezer| freezer.write_all(NO_STATE));
    match written {
        Err(error) => error,
        Ok(()) => io::Error::from_raw_os_error(libc::EINVAL),
    }
}
