//! The kernel's side of guards, in the fewest words: what `lifetime.rs`, `membership.rs`,
//! `operations.rs`, `automatic.rs` and the tripwire of `freezer.rs` do in `freezer-guard-ebpf`.
//! The decision is the very same function. Times are 0 and 1, so that equal situations are
//! equal values.

use std::collections::{BTreeMap, BTreeSet};

use freezer_guard_abi::{
    Action, Actor, AncestorKey, CgroupKey, GuardEntry, GuardId, Object, Place, Protection, Stage,
    TaskPointer,
    control::{Answer, Operation},
    protects_from,
};

use crate::guard::lineage::Lineage;

/// A thread, by a number.
pub(super) type Task = u32;

/// `root` (1), below it `1`s child 2, below that 3, and so on: a line of cgroups.
pub(super) fn cgroup(number: u64) -> Lineage {
    let key = |number| CgroupKey::new(0, number);
    Lineage {
        key: key(number),
        above: (1..number).rev().map(key).collect(),
    }
}

/// All that the kernel keeps of guards, and the freezers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) guards: BTreeMap<GuardId, GuardEntry>,
    pub(super) targets: BTreeMap<CgroupKey, GuardId>,
    pub(super) ancestors: BTreeMap<AncestorKey, GuardId>,
    pub(super) ended: BTreeMap<GuardId, GuardEntry>,
    pub(super) members: BTreeMap<Task, GuardId>,
    pub(super) stale: u64,
    /// What the next guard begins with.
    pub(super) asked_for: Option<GuardEntry>,
    /// Frozen by themselves.
    pub(super) frozen: BTreeSet<u64>,
    /// The freezers that were changed since this was looked at last, and by whom: no program
    /// knows of it.
    pub(super) changes: Vec<(Task, u64)>,
    pub(super) daemon_runs: bool,
}

impl World {
    pub(super) fn in_force(&self, id: GuardId) -> Option<&GuardEntry> {
        self.guards.get(&id).filter(|entry| entry.is_in_force())
    }

    fn in_force_mut(&mut self, id: GuardId) -> Option<&mut GuardEntry> {
        self.guards.get_mut(&id).filter(|entry| entry.is_in_force())
    }

    /// The guard that the task is a holder of.
    pub(super) fn guard_of(&self, task: Task) -> Option<GuardId> {
        let id = *self.members.get(&task)?;
        self.in_force(id).map(|_| id)
    }

    /// `covering` of the BPF side.
    pub(super) fn covering(&self, cgroup: &Lineage) -> Option<GuardId> {
        std::iter::once(&cgroup.key)
            .chain(&cgroup.above)
            .filter_map(|key| self.targets.get(key).copied())
            .find(|id| self.in_force(*id).is_some())
    }

    fn below(&self, cgroup: CgroupKey) -> Vec<GuardId> {
        let any = AncestorKey::new(cgroup, AncestorKey::ANY);
        if !self.ancestors.contains_key(&any) {
            return Vec::new();
        }
        let is_marked = |id: &GuardId| {
            let key = AncestorKey::new(cgroup, *id);
            self.ancestors.contains_key(&key) && self.in_force(*id).is_some()
        };
        self.guards.keys().copied().filter(is_marked).collect()
    }

    /// The guards that mind what the task does to a cgroup's freezer.
    fn minding(&self, task: Task, cgroup: &Lineage, stage: Stage) -> Vec<GuardId> {
        let protects_at = |id: GuardId, place| {
            let actor = match self.guard_of(task) == Some(id) {
                true => Actor::Holder,
                false => Actor::Outsider,
            };
            let action = Action {
                protection: Protection::Freeze,
                object: Object::Cgroup(place),
                stage,
            };
            self.in_force(id)
                .is_some_and(|guard| protects_from(guard, actor, action))
        };
        let on_or_above = self.covering(cgroup);
        let mut found: Vec<_> = on_or_above
            .into_iter()
            .filter(|id| protects_at(*id, Place::Inside))
            .collect();
        let below = self.below(cgroup.key).into_iter();
        found.extend(below.filter(|id| protects_at(*id, Place::Above)));
        found
    }

    /// Whether a write of this task to a cgroup's freezer is permitted.
    pub(super) fn permits(&self, task: Task, cgroup: &Lineage) -> bool {
        self.minding(task, cgroup, Stage::Asked).is_empty()
    }

    /// A write that was permitted takes effect, be that now or much later.
    pub(super) fn write(&mut self, task: Task, cgroup: &Lineage, freeze: bool) {
        let number = cgroup.key.kernfs_id;
        self.takes_over(cgroup.key);
        if freeze || self.frozen.contains(&number) {
            self.claim(task, cgroup);
        }
        let changes = match freeze {
            true => self.frozen.insert(number),
            false => self.frozen.remove(&number),
        };
        if !changes {
            return;
        }
        self.changes.push((task, number));
        for id in self.minding(task, cgroup, Stage::Done) {
            if let Some(entry) = self.in_force_mut(id) {
                entry.disturbances[Protection::Freeze as usize] += 1;
            }
        }
    }

    /// `takes_over` of the BPF side.
    fn takes_over(&mut self, cgroup: CgroupKey) {
        let left = |id: &GuardId| {
            let ended = self.ended.get(id);
            ended.is_some_and(|entry| entry.flags & GuardEntry::FROZEN_BY_US != 0)
        };
        if self.targets.get(&cgroup).is_some_and(left) {
            self.targets.remove(&cgroup);
        }
    }

    /// A checkpointer that nobody has guarded becomes a candidate.
    pub(super) fn execute_checkpointer(&mut self, task: Task, id: GuardId) {
        let candidate = GuardEntry {
            leader: TaskPointer(task.into()),
            members: 1,
            ..GuardEntry::default()
        };
        self.guards.insert(id, candidate);
        self.members.insert(task, id);
    }

    /// `take` of the BPF side.
    fn claim(&mut self, task: Task, cgroup: &Lineage) {
        let Some(id) = self.guard_of(task) else {
            return;
        };
        if self.in_force(id).is_none_or(|entry| !entry.is_automatic())
            || self.covering(cgroup).is_some()
            || self.below(cgroup.key).iter().any(|below| *below != id)
        {
            return;
        }
        self.targets.insert(cgroup.key, id);
        if let Some(entry) = self.in_force_mut(id) {
            entry.flags |= GuardEntry::HELD;
            if entry.checkpointing_ns == 0 {
                entry.checkpointing_ns = 1;
                entry.target = cgroup.key;
            }
        }
        for key in &cgroup.above {
            for guard in [id, AncestorKey::ANY] {
                self.ancestors.insert(AncestorKey::new(*key, guard), id);
            }
        }
    }

    fn join(&mut self, task: Task, id: GuardId) {
        if self.members.insert(task, id) != Some(id)
            && let Some(entry) = self.guards.get_mut(&id)
        {
            entry.members += 1;
        }
    }

    /// The task ends, or belongs to no holder any more.
    pub(super) fn leave(&mut self, task: Task) {
        let Some(id) = self.members.remove(&task) else {
            return;
        };
        let Some(entry) = self.guards.get_mut(&id) else {
            return;
        };
        entry.members -= 1;
        if entry.members == 0 {
            let was_held = entry.flags & GuardEntry::HELD != 0;
            self.end(id, true);
            self.stale += u64::from(was_held);
        }
    }

    fn end(&mut self, id: GuardId, remove: bool) {
        let Some(entry) = self.in_force_mut(id) else {
            return;
        };
        entry.ended_ns = 1;
        let entry = *entry;
        if !entry.is_candidate() {
            self.ended.insert(id, entry);
        }
        if remove {
            self.guards.remove(&id);
        }
    }

    fn unmark(&mut self, cgroup: CgroupKey, ended: GuardId, is_above: bool) {
        let last = AncestorKey::new(cgroup, AncestorKey::ANY);
        if !is_above && self.targets.get(&cgroup) == Some(&ended) {
            self.targets.remove(&cgroup);
        } else if is_above && self.ancestors.get(&last) == Some(&ended) {
            self.ancestors.remove(&last);
        }
    }

    fn enter(&mut self, id: GuardId, before: &[u64]) -> Answer {
        match self.in_force_mut(id) {
            Some(entry) if entry.disturbances == *before => {
                entry.repaired = entry.disturbances;
                entry.checkpointing_ns = 1;
                Answer::Done
            }
            _ => Answer::Disturbed,
        }
    }

    fn candidates(&self) -> u32 {
        let guards = self.guards.values();
        guards.filter(|entry| entry.is_candidate()).count() as u32
    }

    pub(super) fn operate(
        &mut self,
        task: Task,
        operation: Operation,
        id: GuardId,
        more: &[u64],
    ) -> u32 {
        let answer = match operation {
            // Its programs are always called.
            Operation::Prove => Answer::Done,
            Operation::Stale => return self.stale as u32,
            Operation::Candidates => return self.candidates(),
            Operation::Swept => {
                self.stale -= id;
                Answer::Done
            }
            Operation::Unmark => {
                self.unmark(CgroupKey::new(more[0] as u32, more[1]), id, more[2] != 0);
                Answer::Done
            }
            Operation::Begin if self.guard_of(task).is_some() => Answer::OtherGuard,
            Operation::Begin => {
                let mut entry = self.asked_for.take().unwrap_or_default();
                entry.flags |= GuardEntry::HELD;
                self.guards.insert(id, entry);
                self.join(task, id);
                Answer::Done
            }
            _ if self.in_force(id).is_none() => Answer::NoGuard,
            Operation::Enrol => {
                self.join(task, id);
                Answer::Done
            }
            Operation::Leave => {
                self.leave(task);
                Answer::Done
            }
            Operation::End => {
                if let Some(entry) = self.in_force_mut(id)
                    && more[0] != 0
                {
                    entry.flags &= !GuardEntry::FROZEN_BY_US;
                }
                self.end(id, true);
                self.stale += more[1];
                Answer::Done
            }
            Operation::SetFlag => {
                if let Some(entry) = self.in_force_mut(id) {
                    entry.flags |= more[0];
                }
                Answer::Done
            }
            Operation::Checkpointing => self.enter(id, more),
            Operation::Marked | Operation::Armed => Answer::Done,
        };
        answer as u32
    }
}
