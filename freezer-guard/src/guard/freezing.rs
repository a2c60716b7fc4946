//! What a guard does to its targets' freezers, and undoes.

use std::io;

use freezer_guard_abi::{Guard as Entry, GuardId, control};

use super::{
    Error, Guard,
    checks::{is_frozen, refuse_frozen_around},
    status::targets,
};
use crate::{
    cgroup::{self, Cgroup},
    kernel::Maps,
};

impl Guard {
    /// Makes sure that every target is frozen or will be: freezes it if asked
    /// to, and when called again, freezes again what somebody has thawed.
    ///
    /// # Errors
    /// When a target is thawed and not to be frozen, or would not be thawed by
    /// the checkpointer's thaw.
    pub fn freeze(&mut self, if_thawed: bool) -> Result<(), Error> {
        let again = std::mem::replace(&mut self.looked_at, true);
        if !again {
            self.remember_found(if_thawed)?;
        }
        for target in &self.targets {
            for cgroup in target {
                refuse_frozen_around(cgroup)?;
            }
            if again {
                for cgroup in target {
                    let ours = self.froze.iter().chain(&self.found_frozen);
                    if ours.copied().any(|key| key == cgroup.key()) {
                        refreeze(cgroup)?;
                    }
                }
                continue;
            }
            let Some(first) = target.first() else {
                continue;
            };
            let mut frozen = false;
            for cgroup in target {
                if cgroup.is_self_frozen()? {
                    self.found_frozen.push(cgroup.key());
                    frozen = true;
                }
            }
            if !frozen && if_thawed {
                first.freeze()?;
                self.froze.push(first.key());
            } else if !frozen || (!if_thawed && !is_frozen(target)?) {
                let state = first.freezer_state()?;
                return Err(Error::NotFrozen {
                    path: first.path().to_owned(),
                    state,
                });
            }
        }
        Ok(())
    }

    /// For those who end the guard when we cannot. What was found now this way,
    /// now that way, they leave as it is.
    fn remember_found(&self, freezes: bool) -> Result<(), Error> {
        let mut frozen = Vec::new();
        for cgroup in self.cgroups() {
            frozen.push(cgroup.is_self_frozen()?);
        }
        let found = match (frozen.contains(&true), frozen.contains(&false)) {
            (true, false) => Entry::FOUND_FROZEN,
            (false, true) if freezes => Entry::FROZE,
            _ => return Ok(()),
        };
        self.maps.control(control::FOUND, self.id, &[found])?;
        Ok(())
    }

    /// The cgroups that are not frozen yet.
    ///
    /// # Errors
    /// When a state cannot be read.
    pub fn not_frozen(&self) -> Result<Vec<&Cgroup>, Error> {
        let mut pending = Vec::new();
        for target in &self.targets {
            if !is_frozen(target)? {
                pending.extend(target.first());
            }
        }
        Ok(pending)
    }

    /// What we froze is thawed; what was found FROZEN is left FROZEN, also by a
    /// checkpointer that crashed.
    pub(super) fn restore(&self) -> Result<(), Error> {
        // Ours no more: the kernel refuses it if somebody else guards it now.
        let mine = self.maps.guard(self.id)?.is_some();
        let mut result = Ok(());
        for cgroup in self.cgroups() {
            let restored = if self.froze.contains(&cgroup.key()) {
                cgroup.thaw()
            } else if mine && self.entered && self.found_frozen.contains(&cgroup.key()) {
                refreeze(cgroup)
            } else {
                Ok(())
            };
            match restored {
                // The checkpointer may have removed it together with its tasks.
                Err(cgroup::Error::Io { source, .. }) if is_gone(&source) => {}
                // One that cannot be restored is no reason to leave the others.
                restored => result = result.and(restored),
            }
        }
        Ok(result?)
    }
}

/// As [`Guard::end`](super::Guard::end) does it.
pub(super) fn restore_targets(maps: &Maps, id: GuardId) -> Result<(), Error> {
    let Some(entry) = maps.guard(id)? else {
        return Ok(());
    };
    // The checkpointer may have removed one together with its tasks.
    let targets: Vec<_> = targets(maps, id)?
        .into_iter()
        .filter_map(|key| Cgroup::open(&cgroup::by_key(key)?).ok())
        .collect();
    // To be allowed to.
    maps.control(control::ENROL, id, &[])?;
    let mut result = Ok(());
    for target in &targets {
        let restored = match target.is_self_frozen() {
            Ok(true) if entry.flags & Entry::FROZE != 0 => target.thaw(),
            Ok(false) if entry.flags & Entry::FOUND_FROZEN != 0 => target.freeze(),
            other => other.map(drop),
        };
        result = result.and(restored);
    }
    // The kernel side counts a write a moment after it, and this one has to count.
    targets.iter().for_each(Cgroup::settle);
    maps.control(control::LEAVE, id, &[])?;
    Ok(result?)
}

fn refreeze(cgroup: &Cgroup) -> Result<(), cgroup::Error> {
    if cgroup.is_self_frozen()? {
        return Ok(());
    }
    cgroup.freeze()
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
