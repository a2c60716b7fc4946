//! What is protected, and whether a write is refused. No kernel in here.

use crate::GuardId;

/// What a guard protects its target from. User space shows it by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Freezing and thawing.
    Freeze = 0,
    /// Killing every task at once.
    Kill = 1,
    /// Moving tasks.
    Migrate = 2,
}

impl Protection {
    /// The number of protections.
    pub const COUNT: usize = 3;
    /// Each at the index of its own number.
    pub const ALL: [Self; Self::COUNT] = [Self::Freeze, Self::Kill, Self::Migrate];

    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Kill => "kill",
            Self::Migrate => "migrate",
        }
    }
}

/// A file of a cgroup that outsiders may not write.
#[derive(Debug, Clone, Copy)]
pub struct ProtectedFile {
    /// Its name, at most 15 bytes.
    pub name: &'static str,
    /// What a write to it would do.
    pub protection: Protection,
}

const fn file(name: &'static str, protection: Protection) -> ProtectedFile {
    ProtectedFile { name, protection }
}

/// Every protected file of v1 and v2.
pub const PROTECTED_FILES: [ProtectedFile; 6] = [
    file("freezer.state", Protection::Freeze),
    file("cgroup.freeze", Protection::Freeze),
    file("cgroup.kill", Protection::Kill),
    file("tasks", Protection::Migrate),
    file("cgroup.procs", Protection::Migrate),
    file("cgroup.threads", Protection::Migrate),
];

/// A name of at most 15 bytes as two words, for a comparison without a loop.
pub const fn name_words(name: &str) -> [u64; 2] {
    let name = name.as_bytes();
    assert!(
        name.len() < 16,
        "a protected file has a longer name than a comparison reads"
    );
    let mut bytes = [0; 16];
    let mut index = 0;
    while index < name.len() {
        bytes[index] = name[index];
        index += 1;
    }
    let (low, high) = bytes.split_at(8);
    [word(low), word(high)]
}

const fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes([
        bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
    ])
}

/// Where a written cgroup is, seen from the target of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The target or one of its descendants.
    Inside,
    /// One of its ancestors.
    Above,
}

/// Whether `guard`, which is in force, refuses a write that would do what
/// `protection` names to a cgroup at `place`, by a task that belongs to the
/// holder of `writer`.
///
/// Freezing and killing act downwards from an ancestor; moving a task into an
/// ancestor does not touch the target.
#[inline(always)]
pub const fn denies(
    guard: GuardId,
    place: Place,
    protection: Protection,
    writer: Option<GuardId>,
) -> bool {
    let holder = matches!(writer, Some(own) if own == guard);
    !holder
        && match (place, protection) {
            (Place::Inside, _) => true,
            (Place::Above, Protection::Freeze | Protection::Kill) => true,
            (Place::Above, Protection::Migrate) => false,
        }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::{option, prelude::*, sample::select};

    use super::*;

    #[test]
    fn protections_are_numbered_as_listed() {
        for (number, protection) in Protection::ALL.into_iter().enumerate() {
            assert_eq!(protection as usize, number);
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

    fn places() -> impl Strategy<Value = Place> {
        select(&[Place::Inside, Place::Above][..])
    }

    proptest! {
        #[test]
        fn the_holder_is_never_refused(
            guard: GuardId, place in places(), protection in protections(),
        ) {
            prop_assert!(!denies(guard, place, protection, Some(guard)));
        }

        #[test]
        fn the_holder_of_another_guard_is_an_outsider(
            guard: GuardId, writer in option::of(any::<GuardId>()),
            place in places(), protection in protections(),
        ) {
            prop_assume!(writer != Some(guard));
            prop_assert_eq!(
                denies(guard, place, protection, writer),
                denies(guard, place, protection, None)
            );
        }

        #[test]
        fn inside_everything_is_refused_to_outsiders(
            guard: GuardId, protection in protections(),
        ) {
            prop_assert!(denies(guard, Place::Inside, protection, None));
        }

        #[test]
        fn above_only_what_acts_downwards_is_refused(guard: GuardId, protection in protections()) {
            prop_assert_eq!(
                denies(guard, Place::Above, protection, None),
                protection != Protection::Migrate
            );
        }
    }
}
