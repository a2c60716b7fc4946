//! The freezer of a cgroup, as far as a guard uses it.

use freezer_guard_abi::CgroupKey;

use crate::cgroup::{Cgroup, Error, is_gone};

/// A cgroup's own freezer.
pub(super) trait Freezer {
    fn key(&self) -> CgroupKey;
    /// Whether it is on by itself, and not from above.
    fn is_self_frozen(&self) -> Result<bool, Error>;
    fn freeze(&self) -> Result<(), Error>;
    fn thaw(&self) -> Result<(), Error>;
    /// Whether a task is in the cgroup or below it.
    fn has_tasks(&self) -> Result<bool, Error>;
}

impl Freezer for Cgroup {
    fn key(&self) -> CgroupKey {
        self.key()
    }

    fn is_self_frozen(&self) -> Result<bool, Error> {
        self.is_self_frozen()
    }

    fn freeze(&self) -> Result<(), Error> {
        self.freeze()
    }

    fn thaw(&self) -> Result<(), Error> {
        self.thaw()
    }

    fn has_tasks(&self) -> Result<bool, Error> {
        if !self.threads()?.is_empty() {
            return Ok(true);
        }
        for below in self.descendants()? {
            match below.threads() {
                Ok(threads) if threads.is_empty() => {}
                Ok(_) => return Ok(true),
                Err(Error::Io { source, .. }) if is_gone(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Returns when every freeze, thaw and move that the kernel was at has come to its end,
/// tripwires included: it holds a mutex meanwhile, which this takes too. For that, what is no
/// pid is written to `cgroup.procs` (`cgroup_kn_lock_live`, then EINVAL), and v1's state is
/// read (`freezer_read`). For a pid that no task has the kernel would stop every fork of the
/// host and wait for an RCU grace period (`cgroup_threadgroup_rwsem`).
pub(super) fn wait_quiescent(cgroup: &Cgroup) {
    /// Too large for an `int`, but a number for the BPF programs, and no task has it. They
    /// refuse a text that they cannot parse if another guard is near.
    const NOBODY: &str = "2147483648";
    // Neither is for its result; a cgroup that is gone has nothing to wait for.
    let _ = cgroup.write_procs(NOBODY);
    let _ = cgroup.freezer_state();
}
