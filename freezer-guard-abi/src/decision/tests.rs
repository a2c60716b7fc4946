//! These properties are the specification of the decision.

extern crate std;

use proptest::{prelude::*, sample::select};

use super::*;

#[test]
fn protections_are_numbered_as_listed() {
    for (number, protection) in Protection::ALL.into_iter().enumerate() {
        assert_eq!(protection as usize, number);
    }
}

#[test]
fn one_thread_is_moved_by_what_is_listed_so() {
    for (index, file) in PROTECTED_FILES.iter().enumerate() {
        assert_eq!(moves_one_thread(index as u32), file.moves_one_thread);
    }
}

#[test]
fn a_write_does_what_is_listed() {
    for (index, file) in PROTECTED_FILES.iter().enumerate() {
        assert_eq!(protection_of(index as u32), file.protection);
    }
}

#[test]
fn no_two_names_compare_equal() {
    for (number, one) in PROTECTED_FILES.iter().enumerate() {
        for other in &PROTECTED_FILES[number + 1..] {
            assert_ne!(name_words(one.name), name_words(other.name));
        }
    }
}

fn protections() -> impl Strategy<Value = Protection> {
    select(&Protection::ALL[..])
}

fn actors() -> impl Strategy<Value = Actor> {
    select(&Actor::ALL[..])
}

fn places() -> impl Strategy<Value = Place> {
    select(&[Place::Inside, Place::Above][..])
}

fn tasks() -> impl Strategy<Value = Object> {
    any::<(bool, bool)>().prop_map(|(traced, member)| Object::Task { traced, member })
}

fn objects() -> impl Strategy<Value = Object> {
    prop_oneof![places().prop_map(Object::Cgroup), tasks()]
}

fn stages() -> impl Strategy<Value = Stage> {
    select(&[Stage::Asked, Stage::Done][..])
}

fn actions() -> impl Strategy<Value = Action> {
    (protections(), objects(), stages()).prop_map(|(protection, object, stage)| Action {
        protection,
        object,
        stage,
    })
}

/// In force or ended, with any protections lifted, and of any owner and age.
fn guards() -> impl Strategy<Value = GuardEntry> {
    (any::<[u64; 3]>(), 0..16_u64, any::<bool>()).prop_map(|(numbers, allowed, ended)| GuardEntry {
        begun_ns: numbers[0],
        checkpointing_ns: numbers[1],
        flags: numbers[2],
        allowed,
        ended_ns: u64::from(ended),
        ..GuardEntry::default()
    })
}

fn in_force() -> GuardEntry {
    GuardEntry::default()
}

const INSIDE: Object = Object::Cgroup(Place::Inside);
const TASK: Object = Object::Task {
    traced: false,
    member: false,
};

proptest! {
    #[test]
    fn a_guard_that_has_ended_minds_nothing(
        guard in guards(), actor in actors(), action in actions()
    ) {
        prop_assert!(guard.ended_ns == 0 || !protects_from(&guard, actor, action));
    }

    #[test]
    fn what_is_lifted_is_not_minded(
        guard in guards(), actor in actors(), action in actions()
    ) {
        let lifted = guard.allowed & action.protection.bit() != 0;
        prop_assert!(!lifted || !protects_from(&guard, actor, action));
    }

    #[test]
    fn one_protection_says_nothing_of_another(
        guard in guards(), actor in actors(), action in actions()
    ) {
        let only = GuardEntry { allowed: guard.allowed & action.protection.bit(), ..guard };
        prop_assert_eq!(protects_from(&guard, actor, action), protects_from(&only, actor, action));
    }

    #[test]
    fn the_age_and_the_owner_of_a_guard_change_nothing(
        guard in guards(), actor in actors(), action in actions()
    ) {
        let bare = GuardEntry {
            allowed: guard.allowed,
            ended_ns: guard.ended_ns,
            ..GuardEntry::default()
        };
        prop_assert_eq!(protects_from(&guard, actor, action), protects_from(&bare, actor, action));
    }

    #[test]
    fn nothing_that_the_holder_does_is_minded(guard in guards(), action in actions()) {
        prop_assert!(!protects_from(&guard, Actor::Holder, action));
    }

    #[test]
    fn a_superior_is_refused_nothing(
        guard in guards(), protection in protections(), object in objects()
    ) {
        let action = Action { protection, object, stage: Stage::Asked };
        prop_assert!(!protects_from(&guard, Actor::Superior, action));
    }

    #[test]
    fn what_a_superior_has_done_counts(
        guard in guards(), protection in protections(), object in objects()
    ) {
        let action = Action { protection, object, stage: Stage::Done };
        prop_assert_eq!(
            protects_from(&guard, Actor::Superior, action),
            protects_from(&guard, Actor::Outsider, action)
        );
    }

    #[test]
    fn what_is_refused_counts_when_it_is_done(
        guard in guards(), actor in actors(), action in actions()
    ) {
        let done = Action { stage: Stage::Done, ..action };
        prop_assert!(!protects_from(&guard, actor, action) || protects_from(&guard, actor, done));
    }

    #[test]
    fn a_holder_can_be_killed_by_every_task(guard in guards(), actor in actors(), traced: bool) {
        prop_assume!(actor != Actor::Kernel);
        let action = Action {
            protection: Protection::Kill,
            object: Object::Task { traced, member: true },
            stage: Stage::Asked,
        };
        prop_assert!(!protects_from(&guard, actor, action));
    }

    #[test]
    fn inside_every_write_is_refused_to_outsiders(protection in protections()) {
        let action = Action { protection, object: INSIDE, stage: Stage::Asked };
        for actor in [Actor::Own, Actor::Dying, Actor::Outsider] {
            prop_assert!(protects_from(&in_force(), actor, action));
        }
    }

    #[test]
    fn above_only_what_acts_downwards_is_minded(
        protection in protections(), stage in stages()
    ) {
        let action = Action { protection, object: Object::Cgroup(Place::Above), stage };
        prop_assert_eq!(
            protects_from(&in_force(), Actor::Outsider, action),
            matches!(protection, Protection::Freeze | Protection::Kill)
        );
    }

    #[test]
    fn only_the_holder_reaches_a_traced_task(protection in protections(), traced: bool) {
        let object = Object::Task { traced, member: false };
        let action = Action { protection, object, stage: Stage::Asked };
        prop_assert!(!protects_from(&in_force(), Actor::Holder, action));
        prop_assert!(protects_from(&in_force(), Actor::Outsider, action));
        prop_assert_eq!(protects_from(&in_force(), Actor::Own, action), traced);
    }

    #[test]
    fn what_follows_from_the_end_of_a_task_is_its_own(
        guard in guards(), protection in protections(), object in tasks(), stage in stages()
    ) {
        let action = Action { protection, object, stage };
        prop_assert!(!protects_from(&guard, Actor::Dying, action));
    }

    #[test]
    fn what_the_kernel_kills_counts(traced: bool, member: bool) {
        let action = Action {
            protection: Protection::Kill,
            object: Object::Task { traced, member },
            stage: Stage::Done,
        };
        prop_assert!(protects_from(&in_force(), Actor::Kernel, action));
    }
}

#[test]
fn actors_are_numbered_as_listed() {
    for (number, actor) in Actor::ALL.into_iter().enumerate() {
        assert_eq!(actor as usize, number);
        assert_eq!(Actor::numbered(number as u64), actor);
    }
}

#[test]
fn an_outsider_kills_no_task_of_a_target() {
    let action = Action {
        protection: Protection::Kill,
        object: TASK,
        stage: Stage::Asked,
    };
    assert!(protects_from(&in_force(), Actor::Outsider, action));
}
