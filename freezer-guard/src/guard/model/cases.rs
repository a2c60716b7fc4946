//! Single situations, each with a name.

use freezer_guard_abi::{AncestorKey, CgroupKey, GuardEntry, MAX_ENDED, Protection};

use super::{
    holder::{Outcome, Phase},
    machine::{DAEMON, INTRUDER, Move, Situation, Twist, task},
    memory::{MemoryFreezer, MemoryStore},
    world::{World, cgroup},
};
use crate::guard::{
    State, Status,
    automatic::take_ended_of,
    entries::{holder_pids, in_force, is_idle, targets},
    error::Error,
    freezer::Freezer as _,
    lineage::Lineage,
    marking::{claim, clear_the_way},
    marks::{Marks, release},
    overlap::{covering, refuse_guarded, refuse_overlap},
    reconcile::{reconcile, sweep},
    restoring::{Found, restore},
    status::status,
    store::GuardStore,
    tally,
};

/// Plays the plain steps of holders, one after the other.
fn played(targets: &[u64], steps: &[usize]) -> Situation {
    let start = Situation::new(targets, 0, false);
    steps.iter().fold(start, |now, holder| {
        now.after(Move::Step(*holder, Twist::None))
    })
}

fn is_refused(now: &Situation, holder: usize) -> bool {
    now.holders[holder].phase == Phase::Over(Outcome::Failed)
}

#[test]
fn one_of_two_guards_on_a_cgroup_is_refused() {
    assert!(is_refused(&played(&[3, 3], &[0, 1]), 1));
}

#[test]
fn a_guard_below_another_is_refused() {
    assert!(is_refused(&played(&[2, 4], &[0, 1]), 1));
}

#[test]
fn a_guard_above_another_is_refused() {
    assert!(is_refused(&played(&[4, 2], &[0, 1]), 1));
}

#[test]
fn the_next_guard_begins_after_the_end_of_the_first() {
    let now = played(&[3, 3], &[0, 0, 0, 0, 0, 1]);
    assert_eq!(now.holders[0].phase, Phase::Over(Outcome::Good));
    assert_eq!(now.holders[1].phase, Phase::Begun);
}

#[test]
fn a_dead_holder_is_in_the_way_of_nobody() {
    let now = played(&[3, 3], &[0]).after(Move::Die(0));
    let now = now.after(Move::Step(1, Twist::None));
    assert_eq!(now.holders[1].phase, Phase::Begun);
}

#[test]
fn the_end_of_a_guard_leaves_its_cgroup_as_it_was() {
    assert!(played(&[3], &[0, 0, 0, 0, 0]).world.frozen.is_empty());
}

#[test]
fn what_was_frozen_stays_frozen_after_a_checkpointer_has_thawed_it() {
    let mut start = Situation::new(&[3], 0, false);
    start.world.frozen.insert(3);
    let steps = std::iter::repeat_n(Move::Step(0, Twist::None), 5);
    let now = steps.fold(start, |now, step| now.after(step));
    assert_eq!(now.holders[0].phase, Phase::Over(Outcome::Good));
    assert!(now.world.frozen.contains(&3));
}

#[test]
fn a_guard_denies_its_line_to_others_and_nothing_else() {
    let world = played(&[3], &[0]).world;
    assert!(!world.permits(INTRUDER, &cgroup(3)));
    assert!(
        !world.permits(INTRUDER, &cgroup(2)),
        "freezing acts downwards"
    );
    assert!(
        !world.permits(INTRUDER, &cgroup(4)),
        "a descendant is covered"
    );
    assert!(world.permits(task(0), &cgroup(3)));
}

/// A store with a guard of task 10 on the cgroup 3.
fn guarded() -> MemoryStore {
    let store = MemoryStore::new(World::default(), 10, None, None);
    begin(&store, 7, &cgroup(3)).expect("nothing is in the way");
    store
}

fn begin(store: &MemoryStore, id: u64, target: &Lineage) -> Result<(), Error> {
    let targets = std::slice::from_ref(target);
    clear_the_way(store, targets, None)?;
    let entry = GuardEntry {
        begun_ns: id,
        target: target.key,
        ..GuardEntry::default()
    };
    claim(store, id, entry, targets, &[], || {})
}

fn status_of(store: &MemoryStore, entry: &GuardEntry) -> Status {
    status(store, 7, entry).expect("memory can be read")
}

#[test]
fn the_same_holder_has_no_second_guard() {
    let error = begin(
        &guarded(),
        8,
        &Lineage {
            key: cgroup(9).key,
            above: Vec::new(),
        },
    );
    assert!(matches!(error, Err(Error::Nested)), "{error:?}");
}

#[test]
fn what_is_guarded_is_found_from_below() {
    let store = guarded();
    assert_eq!(covering(&store, &cgroup(5), None).expect("read"), Some(7));
    assert_eq!(covering(&store, &cgroup(2), None).expect("read"), None);
    assert_eq!(covering(&store, &cgroup(5), Some(7)).expect("read"), None);
}

#[test]
fn a_guard_is_not_in_its_own_way() {
    let store = guarded();
    assert!(refuse_guarded(&store, &[cgroup(3)], Some(7)).is_ok());
    assert!(refuse_guarded(&store, &[cgroup(3)], None).is_err());
}

#[test]
fn targets_of_one_guard_do_not_overlap() {
    assert!(refuse_overlap(&[cgroup(2), cgroup(3)]).is_err());
    assert!(refuse_overlap(&[cgroup(3), cgroup(3)]).is_err());
    assert!(refuse_overlap(&[cgroup(3)]).is_ok());
}

#[test]
fn a_guard_is_listed_with_its_target_and_holder() {
    let store = guarded();
    assert_eq!(in_force(&store).expect("read").len(), 1);
    assert_eq!(targets(&store, 7).expect("read"), [cgroup(3).key]);
    assert_eq!(holder_pids(&store, 7).expect("read"), [10]);
    assert!(!is_idle(&store).expect("read"));
}

#[test]
fn a_candidate_is_no_guard_in_force() {
    let mut world = World::default();
    world.execute_checkpointer(2, 5);
    let store = MemoryStore::new(world, 10, None, None);
    assert!(is_idle(&store).expect("read"));
    assert!(in_force(&store).expect("read").is_empty());
}

#[test]
fn a_release_leaves_no_mark() {
    let store = guarded();
    let marks = Marks::own(&[cgroup(3)], []);
    let ended = release(&store, 7, marks, true).expect("it ends");
    assert!(ended.is_some_and(|ended| ended.violation_count() == 0));
    let world = store.into_world();
    assert!(world.targets.is_empty() && world.guards.is_empty());
    let is_any = |key: &AncestorKey| key.guard == AncestorKey::ANY;
    assert!(world.ancestors.keys().all(is_any));
}

#[test]
fn a_second_release_finds_nothing() {
    let store = guarded();
    let marks = || Marks::own(&[cgroup(3)], []);
    release(&store, 7, marks(), true).expect("it ends");
    assert!(
        release(&store, 7, marks(), true)
            .expect("it has ended")
            .is_none()
    );
}

#[test]
fn a_sweep_takes_nothing_from_the_living() {
    let store = guarded();
    sweep(&store).expect("memory can be written");
    let world = store.into_world();
    assert_eq!(world.targets.len(), 1);
    assert_eq!(world.ancestors.len(), 4, "two for each cgroup above");
}

#[test]
fn a_sweep_takes_all_from_the_dead() {
    let mut world = guarded().into_world();
    world.leave(10);
    assert_eq!(world.stale, 1);
    let store = MemoryStore::new(world, 11, None, None);
    reconcile(&store).expect("memory can be written");
    let world = store.into_world();
    assert!(world.targets.is_empty() && world.ancestors.is_empty());
    assert_eq!(world.stale, 0);
}

#[test]
fn without_a_daemon_nobody_asks_what_became_of_guards() {
    let mut world = guarded().into_world();
    world.leave(10);
    let store = MemoryStore::new(world, 11, None, None);
    reconcile(&store).expect("memory can be written");
    assert!(store.into_world().ended.is_empty());
}

#[test]
fn with_a_daemon_the_last_word_is_kept() {
    let mut world = guarded().into_world();
    world.daemon_runs = true;
    world.leave(10);
    let store = MemoryStore::new(world, 11, None, None);
    reconcile(&store).expect("memory can be written");
    assert_eq!(store.into_world().ended.len(), 1);
}

#[test]
fn a_status_tells_how_far_a_guard_is() {
    let store = guarded();
    let entry = (&store as &dyn GuardStore)
        .guard(7)
        .expect("read")
        .expect("it is in force");
    assert_eq!(status_of(&store, &entry).state, State::Preparing);
    let entered = GuardEntry {
        checkpointing_ns: 1,
        ..entry
    };
    assert_eq!(status_of(&store, &entered).state, State::Checkpointing);
    let ended = GuardEntry {
        ended_ns: 1,
        ..entered
    };
    assert_eq!(status_of(&store, &ended).state, State::Ended);
}

#[test]
fn what_was_repaired_is_no_violation() {
    let store = guarded();
    let entry = GuardEntry {
        checkpointing_ns: 1,
        disturbances: [3, 0, 0, 0],
        repaired: [1, 0, 0, 0],
        ..GuardEntry::default()
    };
    let status = status_of(&store, &entry);
    assert_eq!(status.violation_count(), 2);
    assert_eq!(status.repaired["freeze"], 1);
}

#[test]
fn before_checkpointing_there_are_no_violations() {
    let entry = GuardEntry {
        disturbances: [3, 0, 0, 0],
        ..GuardEntry::default()
    };
    let status = status_of(&guarded(), &entry);
    assert_eq!(
        (status.violation_count(), status.repaired["freeze"]),
        (0, 3)
    );
}

#[test]
fn the_level_of_a_guard_is_that_of_its_weakest_protection() {
    let entry = GuardEntry {
        levels: [3, 3, 3, 1],
        ..GuardEntry::default()
    };
    assert_eq!(status_of(&guarded(), &entry).level, "detect");
    let lifted = GuardEntry {
        allowed: Protection::Ptrace.bit(),
        ..entry
    };
    assert_eq!(status_of(&guarded(), &lifted).level, "enforce");
}

#[test]
fn a_freezer_is_restored_as_it_was_found() {
    let mut world = World::default();
    world.frozen.insert(2);
    let store = MemoryStore::new(world, 10, None, None);
    let [was_thawed, was_frozen, other] = [2, 3, 4].map(|number| store.freezer(cgroup(number)));
    let found = [
        (&was_thawed, Found::Thawed),
        (&was_frozen, Found::Frozen),
        (&other, Found::Untouched),
    ];
    let (changed, result) = restore(found);
    assert!(result.is_ok());
    assert_eq!(changed, [was_thawed.key(), was_frozen.key()]);
    assert_eq!(
        store.into_world().frozen.into_iter().collect::<Vec<_>>(),
        [3]
    );
}

#[test]
fn one_freezer_that_cannot_be_restored_keeps_none_back() {
    let mut world = guarded().into_world();
    world.frozen.extend([3, 9]);
    // Another task than the holder.
    let store = MemoryStore::new(world, 11, None, None);
    let free = Lineage {
        key: cgroup(9).key,
        above: Vec::new(),
    };
    let [denied, free] = [cgroup(3), free].map(|cgroup| store.freezer(cgroup));
    let (changed, result) = restore([(&denied, Found::Thawed), (&free, Found::Thawed)]);
    assert!(result.is_err());
    assert_eq!(changed, [free.key()]);
}

#[test]
fn a_thaw_that_was_refused_is_tried_again_for_each_target() {
    let alone = |number, above: &[u64]| Lineage {
        key: cgroup(number).key,
        above: above.iter().map(|above| cgroup(*above).key).collect(),
    };
    let line = |key: CgroupKey| match key.kernfs_id {
        9 => alone(9, &[8]),
        number => cgroup(number),
    };
    let take = |world: World| {
        let store = MemoryStore::new(world, DAEMON, None, None);
        let freezer = |key| Some(store.freezer(line(key)));
        let ended = take_ended_of(&store, &freezer).expect("memory can be read");
        (ended, store.into_world())
    };

    let store = MemoryStore::new(World::default(), 10, None, None);
    let targets = [cgroup(3), alone(9, &[8])];
    claim(&store, 7, GuardEntry::default(), &targets, &[], || {}).expect("nothing is in the way");
    let found = GuardEntry::FROZEN_BY_US;
    (&store as &dyn GuardStore)
        .set_flag(7, found)
        .expect("it is in force");
    let mut world = store.into_world();
    world.daemon_runs = true;
    world.frozen.extend([3, 9]);
    world.leave(10);
    // Another guard holds the parent of the second target.
    let store = MemoryStore::new(world, 11, None, None);
    begin(&store, 8, &alone(8, &[])).expect("the first guard has ended");

    let (ended, mut world) = take(store.into_world());
    assert!(ended[0].not_thawed.is_some());
    assert_eq!(world.frozen.iter().copied().collect::<Vec<_>>(), [9]);
    world.leave(11);
    let (ended, world) = take(world);
    assert!(ended.iter().all(|ended| ended.not_thawed.is_none()));
    assert!(world.frozen.is_empty() && world.ended.is_empty());
}

#[test]
fn a_record_that_waits_for_room_is_read() {
    let over = GuardEntry {
        ended_ns: 1,
        ..GuardEntry::default()
    };
    let mut world = World {
        daemon_runs: true,
        ended: (0..MAX_ENDED.into()).map(|id| (id, over)).collect(),
        ..World::default()
    };
    let waiting = GuardEntry {
        flags: GuardEntry::UNREAD,
        ..over
    };
    world.guards.insert(u64::MAX, waiting);
    let store = MemoryStore::new(world, DAEMON, None, None);
    let nothing = |_| None::<MemoryFreezer>;
    let ended = take_ended_of(&store, &nothing).expect("memory can be read");
    assert_eq!(ended.len(), MAX_ENDED as usize + 1);
    assert_eq!(ended.last().map(|ended| ended.status.id), Some(u64::MAX));
    let world = store.into_world();
    assert!(world.guards.is_empty() && world.ended.is_empty());
}

#[test]
fn a_tally_has_each_guard_that_nobody_has_read_yet() {
    let entry = |denials, ended_ns, flags| GuardEntry {
        denials: [denials; Protection::COUNT],
        target: cgroup(3).key,
        ended_ns,
        flags,
        ..GuardEntry::default()
    };
    let mut world = World::default();
    world.guards.insert(1, entry(1, 0, 0));
    // Its record is in the other map.
    world.guards.insert(2, entry(2, 9, 0));
    world.ended.insert(2, entry(3, 9, 0));
    // There was no room in it.
    world.guards.insert(4, entry(4, 9, GuardEntry::UNREAD));
    // Somebody has read it.
    world.guards.insert(5, entry(5, 9, 0));
    let store = MemoryStore::new(world, 10, None, None);
    let counts = tally::counts(&store).expect("memory can be read");
    let found: Vec<_> = counts
        .iter()
        .map(|(id, counts)| (*id, counts.is_in_force, counts.denials["kill"]))
        .collect();
    assert_eq!(found, [(1, true, 1), (2, false, 3), (4, false, 4)]);
}
