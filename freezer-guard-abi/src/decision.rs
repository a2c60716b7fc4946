//! What is protected, and whether a write is refused. No kernel in here.

/// What a guard protects its target from. User space shows it by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Freezing and thawing.
    Freeze = 0,
    /// Killing, stopping and continuing tasks.
    Kill = 1,
    /// Moving tasks in, out and within.
    Migrate = 2,
    /// Tracing tasks, and reading or writing their memory as a tracer may.
    Ptrace = 3,
}

impl Protection {
    /// The number of protections.
    pub const COUNT: usize = 4;
    /// Each at the index of its own number.
    pub const ALL: [Self; Self::COUNT] = [Self::Freeze, Self::Kill, Self::Migrate, Self::Ptrace];

    /// The one with this number; for any other number, the last.
    #[inline(always)]
    pub const fn numbered(number: u32) -> Self {
        match number {
            0 => Self::Freeze,
            1 => Self::Kill,
            2 => Self::Migrate,
            _ => Self::Ptrace,
        }
    }

    /// Its bit in [`Guard::allowed`](crate::Guard::allowed).
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        1 << self as u64
    }

    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Kill => "kill",
            Self::Migrate => "migrate",
            Self::Ptrace => "ptrace",
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
    /// Whether it moves the one thread that is named and not its process.
    pub moves_one_thread: bool,
}

const fn file(name: &'static str, protection: Protection) -> ProtectedFile {
    ProtectedFile {
        name,
        protection,
        moves_one_thread: false,
    }
}

const fn threads(name: &'static str) -> ProtectedFile {
    ProtectedFile {
        moves_one_thread: true,
        ..file(name, Protection::Migrate)
    }
}

/// Every protected file of v1 and v2.
pub const PROTECTED_FILES: [ProtectedFile; 6] = [
    file("freezer.state", Protection::Freeze),
    file("cgroup.freeze", Protection::Freeze),
    file("cgroup.kill", Protection::Kill),
    threads("tasks"),
    file("cgroup.procs", Protection::Migrate),
    threads("cgroup.threads"),
];

/// Whether the file with this place in [`PROTECTED_FILES`] moves one thread. (The
/// verifier would want to see the bounds of an index.)
#[inline(always)]
pub const fn moves_one_thread(index: u32) -> bool {
    const FILES: u32 = {
        let mut bits = 0;
        let mut index = 0;
        while index < PROTECTED_FILES.len() {
            bits |= (PROTECTED_FILES[index].moves_one_thread as u32) << index;
            index += 1;
        }
        bits
    };
    FILES >> (index % u32::BITS) & 1 != 0
}

/// What a write to the file with this place in [`PROTECTED_FILES`] would do. (The verifier
/// would want to see the bounds of an index, and walk what follows once for each file.)
#[inline(always)]
pub const fn protection_of(index: u32) -> Protection {
    /// Four bits each.
    const PROTECTIONS: u32 = {
        let mut bits = 0;
        let mut index = 0;
        while index < PROTECTED_FILES.len() {
            bits |= (PROTECTED_FILES[index].protection as u32) << (4 * index);
            index += 1;
        }
        bits
    };
    Protection::numbered(PROTECTIONS >> (4 * index % u32::BITS) & 0xf)
}

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

/// Whether what is done to an ancestor is done to the target: freezing and killing act
/// downwards; moving a task into an ancestor does not touch the target.
#[inline(always)]
pub const fn acts_downwards(protection: Protection) -> bool {
    matches!(protection, Protection::Freeze | Protection::Kill)
}

/// The relation of an acting task to a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A member of the guard's holder.
    Holder = 0,
    /// A task with authority over the guard's owner: without freezer-guard it may kill or
    /// trace the owner's processes. No task is superior to a guard of the host's root.
    Superior = 1,
    /// A task of the target itself. It runs, so no checkpointer has stopped it: the
    /// checkpoint is over and its tasks go on, or it was never part of it.
    Own = 2,
    /// Any other task.
    Outsider = 3,
}

/// The object of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A cgroup.
    Cgroup(Place),
    /// A task of the target.
    Task {
        /// Whether the guard's holder has it under ptrace.
        traced: bool,
        /// Whether it belongs to the holder of any guard.
        member: bool,
    },
}

/// Returns whether a guard in force refuses an action that `protection` names.
///
/// A guard gives nobody a power over his superiors, and no holder is ever protected from
/// signals: so a guard lasts no longer than its holder, and its holder no longer than without
/// freezer-guard. When the checkpointer has let go of a container's tasks, the guard leaves
/// them alone among themselves.
#[inline(always)]
pub const fn denies(actor: Actor, protection: Protection, object: Object) -> bool {
    match (actor, object) {
        (Actor::Holder | Actor::Superior, _) => false,
        (_, Object::Cgroup(Place::Inside)) => true,
        (_, Object::Cgroup(Place::Above)) => acts_downwards(protection),
        (_, Object::Task { member: true, .. }) if matches!(protection, Protection::Kill) => false,
        (Actor::Own, Object::Task { traced, .. }) => traced,
        (Actor::Outsider, Object::Task { .. }) => true,
    }
}

#[cfg(test)]
mod tests {
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
        select(&[Actor::Holder, Actor::Superior, Actor::Own, Actor::Outsider][..])
    }

    fn places() -> impl Strategy<Value = Place> {
        select(&[Place::Inside, Place::Above][..])
    }

    fn objects() -> impl Strategy<Value = Object> {
        let task = |(traced, member)| Object::Task { traced, member };
        prop_oneof![
            places().prop_map(Object::Cgroup),
            any::<(bool, bool)>().prop_map(task)
        ]
    }

    proptest! {
        #[test]
        fn the_holder_is_never_refused(protection in protections(), object in objects()) {
            prop_assert!(!denies(Actor::Holder, protection, object));
        }

        #[test]
        fn no_guard_has_power_over_a_superior(protection in protections(), object in objects()) {
            prop_assert!(!denies(Actor::Superior, protection, object));
        }

        #[test]
        fn a_holder_can_be_killed_by_every_task(actor in actors(), traced: bool) {
            let object = Object::Task { traced, member: true };
            prop_assert!(!denies(actor, Protection::Kill, object));
        }

        #[test]
        fn inside_every_write_is_refused_to_outsiders(protection in protections()) {
            for actor in [Actor::Own, Actor::Outsider] {
                prop_assert!(denies(actor, protection, Object::Cgroup(Place::Inside)));
            }
        }

        #[test]
        fn above_only_what_acts_downwards_is_refused(protection in protections()) {
            prop_assert_eq!(
                denies(Actor::Outsider, protection, Object::Cgroup(Place::Above)),
                matches!(protection, Protection::Freeze | Protection::Kill)
            );
        }

        #[test]
        fn only_the_holder_reaches_a_traced_task(protection in protections(), traced: bool) {
            let object = Object::Task { traced, member: false };
            prop_assert!(!denies(Actor::Holder, protection, object));
            prop_assert!(denies(Actor::Outsider, protection, object));
            prop_assert_eq!(denies(Actor::Own, protection, object), traced);
        }
    }
}
