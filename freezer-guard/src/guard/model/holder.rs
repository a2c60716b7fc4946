//! A holder: the steps of `run`, each the product's own functions.

use freezer_guard_abi::{GuardEntry, GuardId, Protection, control::Answer};

use super::{
    memory::{MemoryFreezer, MemoryStore},
    world::cgroup,
};
use crate::guard::{
    freezer::Freezer as _,
    freezing::Freezers,
    lineage::Lineage,
    marking::{claim, clear_the_way},
    marks::{Marks, release},
    store::GuardStore,
};

/// How a guard came to its end, as its holder sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// Success.
    Good,
    /// It has counted violations.
    Violated,
    /// An error was told.
    Failed,
    /// The holder has died.
    Dead,
}

/// How far a holder has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Idle,
    Begun,
    Frozen([u64; Protection::COUNT]),
    Checkpointing,
    /// The checkpointer has thawed what it dumps, as CRIU does.
    Thawed,
    Over(Outcome),
}

/// A process that guards a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    pub(super) phase: Phase,
    /// Its target.
    pub(super) number: u64,
    pub(super) id: GuardId,
    freezers: Freezers,
    /// Whether the target was frozen at the first look.
    pub(super) found: Option<bool>,
    /// Whether somebody else has changed a freezer of its line while it was CHECKPOINTING.
    pub(super) touched: bool,
    /// Whether it was dead when a writer looked and no daemon ran: then nobody asks what became
    /// of its guard.
    pub(super) forgotten: bool,
    /// At its end: whether the target was as it was found.
    pub(super) restored: bool,
}

impl Holder {
    pub(super) fn new(number: u64) -> Self {
        Self {
            phase: Phase::Idle,
            number,
            id: 0,
            freezers: Freezers::default(),
            found: None,
            touched: false,
            forgotten: false,
            restored: true,
        }
    }

    pub(super) fn is_checkpointing(&self) -> bool {
        matches!(self.phase, Phase::Checkpointing | Phase::Thawed)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    pub(super) fn holds(&self) -> bool {
        !self.is_over() && self.phase != Phase::Idle
    }

    /// Goes one step further, or ends the guard, and returns how far that comes.
    pub(super) fn step(&mut self, store: &MemoryStore, ends: bool) -> Phase {
        let target = cgroup(self.number);
        let freezer = store.freezer(target.clone());
        match (self.phase, ends) {
            (Phase::Idle, _) => begin(store, self.id, &target),
            (Phase::Begun, false) => match freeze(store, self, &freezer) {
                Some(before) => Phase::Frozen(before),
                None => end(store, self, &target, &freezer),
            },
            (Phase::Frozen(before), false) => {
                match (store as &dyn GuardStore).enter(self.id, before) {
                    Ok(Answer::Done) => Phase::Checkpointing,
                    Ok(Answer::Disturbed) => Phase::Begun,
                    _ => Phase::Over(Outcome::Failed),
                }
            }
            (Phase::Checkpointing, false) => match freezer.thaw() {
                Ok(()) => Phase::Thawed,
                Err(_) => end(store, self, &target, &freezer),
            },
            (over @ Phase::Over(_), _) => over,
            _ => end(store, self, &target, &freezer),
        }
    }
}

fn begin(store: &MemoryStore, id: GuardId, target: &Lineage) -> Phase {
    let targets = std::slice::from_ref(target);
    let entry = GuardEntry {
        begun_ns: id,
        target: target.key,
        ..GuardEntry::default()
    };
    let begun = clear_the_way(store, targets, None)
        .and_then(|()| claim(store, id, entry, targets, &[], || {}));
    match begun {
        Ok(()) => Phase::Begun,
        Err(_) => Phase::Over(Outcome::Failed),
    }
}

/// The disturbances before the target was looked at; `None`: it cannot be frozen.
fn freeze(
    store: &MemoryStore,
    holder: &mut Holder,
    freezer: &MemoryFreezer,
) -> Option<[u64; Protection::COUNT]> {
    let entry = (store as &dyn GuardStore).guard(holder.id).ok()??;
    let freezers = &mut holder.freezers;
    if !freezers.looked_at {
        freezers.remember(store, holder.id, [freezer], true).ok()?;
    }
    freezers.freeze(std::slice::from_ref(freezer), true).ok()?;
    freezers.looked_at = true;
    holder.found = Some(freezers.has_found_frozen());
    Some(entry.disturbances)
}

fn end(store: &MemoryStore, holder: &Holder, target: &Lineage, freezer: &MemoryFreezer) -> Phase {
    let entered = holder.is_checkpointing();
    let restored = holder
        .freezers
        .restore(store, holder.id, [freezer], entered);
    let marks = Marks::own(std::slice::from_ref(target), []);
    let ended = release(store, holder.id, marks, restored.is_ok());
    Phase::Over(match ended {
        Ok(Some(status)) if status.violation_count() > 0 => Outcome::Violated,
        Ok(Some(_)) if restored.is_ok() && entered => Outcome::Good,
        _ => Outcome::Failed,
    })
}
