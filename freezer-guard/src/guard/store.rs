//! What a guard's life needs of the kernel: maps that both sides change, and operations.
//!
//! [`Maps`] is the real one. The tests of this room have one in memory, whose kernel side dies,
//! claims and counts at any moment: see `model`.

use std::path::PathBuf;

use freezer_guard_abi::{
    AncestorKey, CgroupKey, GuardEntry, GuardId, Intruder, IntruderKey, Member, Protection,
    control::{Answer, Operation},
};

use super::{Error, path};
use crate::kernel::{self, Map, Maps};

/// The kernel's side of guards. User-space writers are one at a time.
pub(super) trait GuardStore {
    /// Every entry, ended ones and candidates included.
    fn guards(&self) -> &dyn Map<GuardId, GuardEntry>;
    /// The targets.
    fn targets(&self) -> &dyn Map<CgroupKey, GuardId>;
    /// The guards below each ancestor of a target.
    fn ancestors(&self) -> &dyn Map<AncestorKey, GuardId>;
    /// Who was refused.
    fn intruders(&self) -> &dyn Map<IntruderKey, Intruder>;
    /// Who got through.
    fn violators(&self) -> &dyn Map<IntruderKey, Intruder>;
    /// The guards that have ended, until somebody has read what became of them.
    fn ended(&self) -> &dyn Map<GuardId, GuardEntry>;
    /// The threads of all holders, or of one guard's.
    fn members(&self, guard: Option<GuardId>) -> Result<Vec<Member>, kernel::Error>;
    /// The calls that tripwires have missed.
    fn missed(&self) -> Result<u64, kernel::Error>;
    /// Sets what [`Operation::Begin`] begins with.
    fn set_asked_for(&self, entry: GuardEntry) -> Result<(), kernel::Error>;
    /// Acts on the calling thread, from inside the kernel.
    fn run(&self, operation: Operation, guard: GuardId, more: &[u64])
    -> Result<u32, kernel::Error>;
    /// What a cgroup is called, for messages.
    fn name(&self, cgroup: CgroupKey) -> PathBuf;
    /// Waits until every program that runs now has ended.
    fn wait_for_programs(&self) -> Result<(), kernel::Error>;
    /// Whether a daemon runs: it asks what became of guards.
    fn daemon_runs(&self) -> bool;
}

impl GuardStore for Maps {
    fn guards(&self) -> &dyn Map<GuardId, GuardEntry> {
        &self.guards
    }

    fn targets(&self) -> &dyn Map<CgroupKey, GuardId> {
        &self.targets
    }

    fn ancestors(&self) -> &dyn Map<AncestorKey, GuardId> {
        &self.ancestors
    }

    fn intruders(&self) -> &dyn Map<IntruderKey, Intruder> {
        &self.intruders
    }

    fn violators(&self) -> &dyn Map<IntruderKey, Intruder> {
        &self.violators
    }

    fn ended(&self) -> &dyn Map<GuardId, GuardEntry> {
        &self.ended
    }

    fn members(&self, guard: Option<GuardId>) -> Result<Vec<Member>, kernel::Error> {
        self.members(guard)
    }

    fn missed(&self) -> Result<u64, kernel::Error> {
        self.missed()
    }

    fn set_asked_for(&self, entry: GuardEntry) -> Result<(), kernel::Error> {
        self.set_asked_for(entry)
    }

    fn run(
        &self,
        operation: Operation,
        guard: GuardId,
        more: &[u64],
    ) -> Result<u32, kernel::Error> {
        self.control.run(operation, guard, more)
    }

    fn name(&self, cgroup: CgroupKey) -> PathBuf {
        path(cgroup)
    }

    fn wait_for_programs(&self) -> Result<(), kernel::Error> {
        kernel::wait_for_programs()
    }

    fn daemon_runs(&self) -> bool {
        kernel::daemon_runs()
    }
}

/// The operations, typed: see [`Operation`].
impl dyn GuardStore + '_ {
    /// The guard's entry, if it is in force.
    pub(super) fn guard(&self, id: GuardId) -> Result<Option<GuardEntry>, Error> {
        Ok(self.guards().get(&id)?.filter(GuardEntry::is_in_force))
    }

    fn operate(&self, operation: Operation, id: GuardId, more: &[u64]) -> Result<Answer, Error> {
        let answer = self.run(operation, id, more)?;
        Answer::numbered(answer).ok_or(Error::Answer { operation, answer })
    }

    pub(super) fn begin(&self, id: GuardId, entry: GuardEntry) -> Result<Answer, Error> {
        self.set_asked_for(entry)?;
        self.operate(Operation::Begin, id, &[])
    }

    /// Makes the calling thread a member.
    pub(super) fn join(&self, id: GuardId) -> Result<Answer, Error> {
        self.operate(Operation::Enrol, id, &[])
    }

    pub(super) fn leave(&self, id: GuardId) -> Result<Answer, Error> {
        self.operate(Operation::Leave, id, &[])
    }

    pub(super) fn tell_marked(&self, id: GuardId, target: CgroupKey) -> Result<Answer, Error> {
        let target = [target.hierarchy_id.into(), target.kernfs_id];
        self.operate(Operation::Marked, id, &target)
    }

    /// `flag`: [`GuardEntry::FROZEN_BY_US`], [`GuardEntry::FOUND_FROZEN`] or
    /// [`GuardEntry::UNPROVEN`].
    pub(super) fn set_flag(&self, id: GuardId, flag: u64) -> Result<Answer, Error> {
        self.operate(Operation::SetFlag, id, &[flag])
    }

    /// Enters CHECKPOINTING. `before`: the disturbances before the targets were looked at.
    pub(super) fn enter(
        &self,
        id: GuardId,
        before: [u64; Protection::COUNT],
    ) -> Result<Answer, Error> {
        self.operate(Operation::Checkpointing, id, &before)
    }

    /// `levels`: the numbers of [`Level`](freezer_guard_abi::Level)s. `missed`: the calls that
    /// tripwires have missed.
    pub(super) fn arm(
        &self,
        id: GuardId,
        levels: [u32; Protection::COUNT],
        missed: u64,
    ) -> Result<Answer, Error> {
        let bytes = levels.iter().rev();
        let levels = bytes.fold(0, |bytes, level| bytes << 8 | u64::from(*level));
        self.operate(Operation::Armed, id, &[levels, missed])
    }

    /// `restored`: its targets are as they were found. `marks_are_left`: some may be.
    pub(super) fn end(
        &self,
        id: GuardId,
        restored: bool,
        marks_are_left: bool,
    ) -> Result<Answer, Error> {
        let more = [restored.into(), marks_are_left.into()];
        self.operate(Operation::End, id, &more)
    }

    /// Removes the mark of a target if it names this guard. A program may be giving it to another guard
    /// now: so does a program remove it.
    pub(super) fn unmark(&self, target: CgroupKey, id: GuardId) -> Result<(), Error> {
        let more = [target.hierarchy_id.into(), target.kernfs_id, 0];
        self.operate(Operation::Unmark, id, &more).map(drop)
    }

    /// The same with the mark for the guard that was begun last below a cgroup.
    pub(super) fn unmark_last_below(&self, cgroup: CgroupKey, id: GuardId) -> Result<(), Error> {
        let more = [cgroup.hierarchy_id.into(), cgroup.kernfs_id, 1];
        self.operate(Operation::Unmark, id, &more).map(drop)
    }

    /// How many guards have ended whose marks may be left.
    pub(super) fn stale(&self) -> Result<u32, Error> {
        Ok(self.run(Operation::Stale, 0, &[])?)
    }

    /// How many candidates there are.
    pub(super) fn candidates(&self) -> Result<u32, Error> {
        Ok(self.run(Operation::Candidates, 0, &[])?)
    }

    /// So many of them have none any more.
    pub(super) fn has_swept(&self, guards: u32) -> Result<Answer, Error> {
        self.operate(Operation::Swept, guards.into(), &[])
    }
}
