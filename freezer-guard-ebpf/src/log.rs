//! Why the kernel side does what it does, for the service's log.
//!
//! Only in cold places, and only numbers: no name that somebody has chosen comes in here. User
//! space sets the level before the load, in read-only data, so that the verifier removes what
//! is below it.
//!
//! Each line is a global function (see `lookup`): what its macro needs of the stack and of
//! the verifier is not its caller's to bear.

use aya_log_ebpf::{debug, info, macro_support::level_enabled, trace, warn};
use freezer_guard_abi::{CgroupKey, GuardId};

pub(crate) use aya_log_ebpf::macro_support::Level;

/// Whether lines of this level are written.
#[inline(always)]
pub(crate) fn is_on(level: Level) -> bool {
    level_enabled(level)
}

/// Declares functions of numbers that write one line each.
macro_rules! lines {
    ($($(#[$doc:meta])* $name:ident, $write:ident, $level:ident,
        ($($number:ident),*), $format:literal;)+) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub(crate) fn $name($($number: u64),*) {
                #[unsafe(no_mangle)]
                #[inline(never)]
                extern "C" fn $write($($number: u64),*) -> u64 {
                    $level!((), $format, $($number),*);
                    0
                }
                if is_on(lines!(@level $level)) {
                    $write($($number),*);
                }
            }
        )+
    };
    (@level warn) => { Level::Warn };
    (@level info) => { Level::Info };
    (@level debug) => { Level::Debug };
    (@level trace) => { Level::Trace };
}

lines! {
    /// A file called `criu` was executed, and is no checkpointer's.
    wrong_owner, log_wrong_owner, debug, (pid, uid),
        "pid {} executes a file called criu: no guard, since uid {} owns the file and not root";
    /// The same.
    wrong_mode, log_wrong_mode, debug, (pid, mode),
        "pid {} executes a file called criu: no guard, since others than root may write the file (mode {:x} in hex)";
    /// The same.
    wrong_mount, log_wrong_mount, debug, (pid),
        "pid {} executes a file called criu: no guard, since the file lies on a mount with nosuid or of a user";
    /// The same.
    wrong_credentials, log_wrong_credentials, debug, (pid, uid),
        "pid {} executes criu as uid {}: no guard, since it cannot dump the processes of others";
    /// A checkpointer has no guard, for other guards are in its way.
    claim_is_busy, log_claim_is_busy, warn, (guard, hierarchy, kernfs),
        "guard {}: does not take the cgroup {}:{}: another guard holds it, one above it or one below it, or it lies too deep";
    /// A checkpointer has no guard, for there is no room.
    claim_is_full, log_claim_is_full, warn, (guard, hierarchy, kernfs),
        "guard {}: does not take the cgroup {}:{}: there are too many guards, or it lies too deep for a user";
    /// A write is refused without a guard that was found.
    too_deep, log_too_deep, warn, (pid, hierarchy, kernfs),
        "pid {}: a write to the cgroup {}:{} is refused: it lies too deep to see whether it is guarded";
    /// A write of a pid is refused, for it may be anybody's.
    unread_text, log_unread_text, info, (pid, hierarchy, kernfs),
        "pid {}: a write to the cgroup {}:{} is refused: the pid that it moves could not be read";
    /// A fork is refused.
    no_room, log_no_room, warn, (guard, pid),
        "guard {}: a fork of pid {} fails: there are too many threads of holders";
    /// Something has disturbed the targets before CHECKPOINTING.
    disturbed, log_disturbed, info, (guard, protection, before, now),
        "guard {}: not CHECKPOINTING yet: disturbances of protection {} have gone from {} to {}";
    /// Something is refused.
    refused, log_refused, trace, (guard, pid, act, hierarchy, kernfs),
        "guard {}: refuses pid {} the act {} to the cgroup {}:{}";
}

/// A checkpointer has no guard.
#[inline(always)]
pub(crate) fn claim(guard: GuardId, cgroup: CgroupKey, is_busy: bool) {
    match is_busy {
        true => claim_is_busy(guard, cgroup.hierarchy_id.into(), cgroup.kernfs_id),
        false => claim_is_full(guard, cgroup.hierarchy_id.into(), cgroup.kernfs_id),
    }
}
