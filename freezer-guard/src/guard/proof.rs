//! The live proof that the kernel calls the programs. While function tracing is off
//! (`kernel.ftrace_enabled = 0`), the kernel keeps all programs attached and calls none.

use std::{io, thread};

use freezer_guard_abi::{GuardEntry, GuardId, Level, Protection, control::Operation};
use nix::unistd::gettid;

use super::{Error, level, reconcile::hierarchies_in_use, store::GuardStore};
use crate::{
    cgroup::{self, Cgroup},
    kernel::{Control, Locked, Maps, prerequisites::is_tracing_off},
};

/// Below the level `enforce` a preemptible kernel leaves a program out now and then.
const ATTEMPTS: u32 = 3;

/// Returns whether the kernel calls the program that refuses writes to the freezers of this
/// guard's targets. A thread that does not belong to the holder writes a text that is no state:
/// the guard has to refuse the write, and without the guard it changes nothing.
///
/// For a guard that refuses no such write, only the switch of function tracing tells.
///
/// # Errors
/// When there can be no such thread, or a freezer cannot be written.
pub(super) fn is_live(
    control: &Control,
    id: GuardId,
    entry: &GuardEntry,
    targets: &[&Cgroup],
) -> Result<bool, Error> {
    if is_tracing_off() {
        return Ok(false);
    }
    let level = entry.levels[Protection::Freeze as usize];
    if !GuardEntry::protects(entry.allowed, Protection::Freeze) || level <= Level::Detect as u32 {
        return Ok(true);
    }
    thread::scope(|scope| {
        let prover = thread::Builder::new().name("prover".to_owned());
        let prover = prover.spawn_scoped(scope, || prove(control, id, targets));
        let result = prover.map_err(Error::NoProof)?.join();
        result.unwrap_or_else(|_| Err(Error::NoProof(io::Error::other("a thread panicked"))))
    })
}

/// Checks before the end of a guard that was CHECKPOINTING that all its programs are still
/// attached and that the kernel calls them. Sets [`GuardEntry::UNPROVEN`] otherwise.
pub(super) fn prove_end(
    lock: &Locked,
    maps: &Maps,
    id: GuardId,
    targets: &[&Cgroup],
) -> Result<(), Error> {
    let store: &dyn GuardStore = maps;
    let Some(entry) = store.guard(id)?.filter(|entry| entry.checkpointing_ns != 0) else {
        return Ok(());
    };
    // Beside a guard on v1 another program refuses the same writes.
    let levels = level::numbers(lock.levels(hierarchies_in_use(store)?));
    let is_attached = levels
        .iter()
        .zip(entry.levels)
        .all(|(now, then)| *now >= then);
    if !(is_attached && is_live(&maps.control, id, &entry, targets).unwrap_or(false)) {
        store.set_flag(id, GuardEntry::UNPROVEN)?;
    }
    Ok(())
}

/// The work of that thread. The caller holds the lock, so there is one prover at a time.
fn prove(control: &Control, id: GuardId, targets: &[&Cgroup]) -> Result<bool, Error> {
    // A child of the holder belongs to it.
    control.run(Operation::Leave, id, &[])?;
    control.run(Operation::Prove, gettid().as_raw() as u64, &[])?;
    let refusals: Vec<_> = targets.iter().map(|target| is_refused(target)).collect();
    control.run(Operation::Prove, 0, &[])?;
    for is_refused in refusals {
        if !is_refused? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes a text that is no state. The kernel's own answer to that is EINVAL.
fn is_refused(target: &Cgroup) -> Result<bool, Error> {
    for _ in 0..ATTEMPTS {
        let Err(error) = target.write_freezer("?") else {
            continue;
        };
        let cgroup::Error::Io { source, .. } = &error else {
            return Err(error.into());
        };
        match source.raw_os_error() {
            Some(libc::EINVAL) => {}
            Some(libc::EBUSY) => return Ok(true),
            // Nobody can disturb a cgroup that is gone.
            _ if cgroup::is_gone(source) => return Ok(true),
            _ => return Err(error.into()),
        }
    }
    Ok(false)
}
