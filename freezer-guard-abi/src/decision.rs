//! What is protected, and whether a write is refused. No kernel in here.

use crate::GuardEntry;

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

    /// Its bit in [`GuardEntry::allowed`](crate::GuardEntry::allowed).
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

/// The relation of an actor to a guard.
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
    /// A task of the target that is exiting. The consequences of its exit, such as the end of
    /// its pid namespace, belong to the cause of the exit.
    Dying = 3,
    /// Any other task.
    Outsider = 4,
    /// The kernel itself, which kills when memory runs out, in whatever task that is.
    Kernel = 5,
}

impl Actor {
    /// Each at the index of its own number.
    pub const ALL: [Self; 6] = [
        Self::Holder,
        Self::Superior,
        Self::Own,
        Self::Dying,
        Self::Outsider,
        Self::Kernel,
    ];

    /// The actor with this number; for any other number, the last.
    #[inline(always)]
    pub const fn numbered(number: u64) -> Self {
        match number {
            0 => Self::Holder,
            1 => Self::Superior,
            2 => Self::Own,
            3 => Self::Dying,
            4 => Self::Outsider,
            _ => Self::Kernel,
        }
    }
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

/// Whether an action can still be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits for an answer: a guard that objects refuses it.
    Asked,
    /// It has been done: a guard that objects counts it.
    Done,
}

/// An access that an actor asks for, or has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// The protection that it runs into.
    pub protection: Protection,
    /// The object.
    pub object: Object,
    /// Whether it can still be refused.
    pub stage: Stage,
}

/// **The decision**: returns whether a guard protects its target from an action. Every hook that refuses asks
/// it, and so does every tripwire that counts.
///
/// A guard gives its owner no power over his superiors: they are refused nothing, and their
/// accesses count. No holder is ever protected from signals: so a guard lasts no longer than its
/// holder, and its holder no longer than without freezer-guard. When the checkpointer has let
/// go of a container's tasks, the guard leaves them alone among themselves.
#[inline(always)]
pub const fn protects_from(guard: &GuardEntry, actor: Actor, action: Action) -> bool {
    let Action {
        protection,
        object,
        stage,
    } = action;
    if !guard.is_in_force() || !GuardEntry::protects(guard.allowed, protection) {
        return false;
    }
    let is_asked = matches!(stage, Stage::Asked);
    match (actor, object) {
        (Actor::Holder, _) => false,
        (Actor::Superior, _) if is_asked => false,
        (_, Object::Cgroup(Place::Inside)) => true,
        (_, Object::Cgroup(Place::Above)) => acts_downwards(protection),
        (Actor::Kernel, Object::Task { .. }) => true,
        (_, Object::Task { member: true, .. })
            if is_asked && matches!(protection, Protection::Kill) =>
        {
            false
        }
        (Actor::Dying, Object::Task { .. }) => false,
        (Actor::Own, Object::Task { traced, .. }) => traced,
        (Actor::Outsider | Actor::Superior, Object::Task { .. }) => true,
    }
}

#[cfg(test)]
mod tests;
