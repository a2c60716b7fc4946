//! Whether a task has authority over the owner of a guard.
//!
//! A guard of the host's root refuses everybody but its holder. A guard of a user refuses
//! nobody with a capability over that user: freezer-guard gives him no power over them. No
//! guard refuses anything to the init that ends the system.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use freezer_guard_abi::GuardEntry;

use crate::{
    audit,
    each::{self, GO_ON, STOP},
    kernel::{self, Pointer, offset, probe},
    maps::TURNS,
};

/// Of `linux/capability.h`, a bit each.
const CAP_KILL: u64 = 1 << 5;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

/// Each of them is enough to kill or trace the processes of others.
const AUTHORITY: u64 = CAP_KILL | CAP_SYS_PTRACE | CAP_SYS_ADMIN;

/// Each of them is enough to dump the processes of others.
const CHECKPOINTER: u64 = CAP_SYS_ADMIN | CAP_SYS_PTRACE | CAP_CHECKPOINT_RESTORE;

/// What a task may do, and where.
#[derive(Clone, Copy)]
pub(crate) struct Credentials {
    /// The effective uid, in the initial user namespace.
    pub(crate) uid: u32,
    /// How deep the user namespace lies. The initial one is at 0.
    level: u32,
    /// `struct user_namespace *`
    pub(crate) user_ns: u64,
    /// The effective capabilities, a bit each.
    capabilities: u64,
}

impl Credentials {
    #[inline(always)]
    pub(crate) fn of(task: Pointer) -> Option<Self> {
        let cred: Pointer = probe(task, offset!(task_struct_cred))?;
        let user_ns: u64 = probe(cred, offset!(cred_user_ns))?;
        Some(Self {
            uid: probe(cred, offset!(cred_euid))?,
            level: probe(user_ns as Pointer, offset!(user_namespace_level))?,
            user_ns,
            capabilities: probe(cred, offset!(cred_cap_effective))?,
        })
    }

    /// Returns whether the task has one of these capabilities over the whole host.
    #[inline(always)]
    fn has_on_host(&self, capabilities: u64) -> bool {
        self.level == 0 && self.capabilities & capabilities != 0
    }

    /// Returns whether a guard of this task has the authority of the host's root.
    #[inline(always)]
    pub(crate) fn is_root_of_host(&self) -> bool {
        self.has_on_host(CAP_SYS_ADMIN)
    }

    /// Returns whether the task can dump the processes of others.
    #[inline(always)]
    pub(crate) fn is_checkpointer(&self) -> bool {
        self.has_on_host(CHECKPOINTER)
    }
}

/// Returns whether the current task has authority over the guard's owner, or ends the system.
#[inline(always)]
pub(crate) fn is_superior(guard: &GuardEntry) -> bool {
    ends_system() != 0
        || guard.flags & GuardEntry::BY_USER != 0 && has_authority(guard.owner_ns) != 0
}

/// Returns 1 if the current task is init and no service manager at work, else 0. A global
/// function: see `lookup`.
///
/// At the end of its work systemd executes `systemd-shutdown` in its own place, which kills
/// the rest and unmounts the file systems. Before that it is called `systemd`, also when
/// its file has another name (`main` of systemd's `src/core/main.c`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ends_system() -> u64 {
    if bpf_get_current_pid_tgid() >> 32 != 1 {
        return 0;
    }
    u64::from(!kernel::name_of_current().starts_with(b"systemd\0"))
}

/// Returns whether the current task has authority over every user.
#[inline(always)]
pub(crate) fn is_over_all_users() -> bool {
    Credentials::of(kernel::current()).is_some_and(|actor| actor.has_on_host(AUTHORITY))
}

/// Returns 1 if the current task has authority over a user namespace, else 0. A global
/// function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn has_authority(user_ns: u64) -> u64 {
    if audit::is_prover() {
        return 0;
    }
    let Some(actor) = Credentials::of(kernel::current()) else {
        return 0;
    };
    if actor.has_on_host(AUTHORITY) {
        return 1;
    }
    let mut ascent = Ascent {
        user_ns,
        actor,
        answer: 0,
    };
    each::element(&TURNS, ascend, &mut ascent);
    ascent.answer
}

/// The way up from the owner's user namespace to the actor's.
struct Ascent {
    user_ns: u64,
    actor: Credentials,
    answer: u64,
}

/// One step of `cap_capable` of `security/commoncap.c`.
extern "C" fn ascend(_: *const c_void, _: *const u32, _: *mut u8, ascent: *mut Ascent) -> u64 {
    // SAFETY: `has_authority` passes it, from its own stack.
    let ascent = unsafe { &mut *ascent };
    let (user_ns, actor) = (ascent.user_ns as Pointer, ascent.actor);
    if ascent.user_ns == actor.user_ns {
        ascent.answer = u64::from(actor.capabilities & AUTHORITY != 0);
        return STOP;
    }
    // One after the other: what LLVM makes of the three together reads an uninitialised
    // register, which the verifier of 6.1 refuses.
    let Some(level) = probe::<u32>(user_ns, offset!(user_namespace_level)) else {
        return STOP;
    };
    if level <= actor.level {
        return STOP;
    }
    let Some(parent) = probe::<u64>(user_ns, offset!(user_namespace_parent)) else {
        return STOP;
    };
    if parent == actor.user_ns {
        // The owner of a namespace has all capabilities in it, in its parent.
        let owner = probe::<u32>(user_ns, offset!(user_namespace_owner));
        if owner == Some(actor.uid) {
            ascent.answer = 1;
            return STOP;
        }
    }
    ascent.user_ns = parent;
    GO_ON
}
