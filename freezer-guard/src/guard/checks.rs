//! What has to hold of the targets before CHECKPOINTING. Nothing is changed here.

use std::path::Path;

use super::{Error, Target};
use crate::{
    cgroup::{self, Cgroup, FreezerState, Report},
    sys,
};

/// Checks that the process ids of this process are those of the kernel.
///
/// # Errors
/// In the pid namespace of a container.
pub fn refuse_pid_namespace() -> Result<(), Error> {
    match sys::is_initial_pid_namespace() {
        true => Ok(()),
        false => Err(Error::PidNamespace),
    }
}

/// A checkpointer's thaw does not reach a cgroup that is frozen from above, nor
/// one below that is frozen by itself: it would hang.
pub(super) fn refuse_frozen_around(cgroup: &Cgroup) -> Result<(), Error> {
    let path = || cgroup.path().to_owned();
    refuse_frozen(&cgroup.ancestors()?, cgroup.path())?;
    for descendant in cgroup.descendants()? {
        if descendant.is_self_frozen()? {
            let descendant = descendant.path().to_owned();
            return Err(Error::FrozenDescendant {
                path: path(),
                descendant,
            });
        }
    }
    Ok(())
}

/// Returns an error if one of these cgroups, which hold the target's tasks, is frozen.
pub(super) fn refuse_frozen(cgroups: &[Cgroup], target: &Path) -> Result<(), Error> {
    for cgroup in cgroups {
        if cgroup.is_self_frozen()? {
            return Err(Error::FrozenAncestor {
                path: target.to_owned(),
                ancestor: cgroup.path().to_owned(),
            });
        }
    }
    Ok(())
}

/// Returns an error if a target contains one of these processes, each with its name for
/// messages: a frozen process could not thaw it.
///
/// # Errors
/// Also when the cgroups of a process cannot be read.
pub fn refuse_containing(targets: &[Target], processes: &[(u32, &str)]) -> Result<(), Error> {
    for (pid, name) in processes {
        for own in cgroup::of_pid(i32::try_from(*pid).unwrap_or_default())? {
            let above = own.ancestors()?;
            let is_in = |target: &&Cgroup| {
                target.key() == own.key() || above.iter().any(|above| above.key() == target.key())
            };
            if let Some(target) = targets.iter().flatten().find(is_in) {
                return Err(Error::Contains {
                    path: target.path().to_owned(),
                    process: format!("{name} (pid {pid})"),
                });
            }
        }
    }
    Ok(())
}

/// See [`Guard::verify`](super::Guard::verify); without a guard it tells of this moment only.
///
/// # Errors
/// When a task is elsewhere, or is being traced.
pub fn verify(targets: &[Target], roots: &[i32]) -> Result<Report, Error> {
    let report = cgroup::examine(targets, roots)?;
    if !report.strays.is_empty() {
        let mut cgroups = targets.iter().flatten();
        let path = cgroups.next().map(|cgroup| cgroup.path().to_owned());
        return Err(Error::Stray {
            path: path.unwrap_or_default(),
            tasks: report.strays,
        });
    }
    if !report.traced.is_empty() {
        return Err(Error::Traced(report.traced));
    }
    Ok(report)
}

pub(super) fn is_frozen(target: &[Cgroup]) -> Result<bool, cgroup::Error> {
    for cgroup in target {
        if cgroup.freezer_state()? == FreezerState::Frozen {
            return Ok(true);
        }
    }
    Ok(false)
}
