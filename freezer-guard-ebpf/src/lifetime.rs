//! The life of a guard's entry: counted while it is held, and ended once.

use aya_ebpf::bindings::BPF_ANY;
use freezer_guard_abi::{
    CgroupKey, EventKind, GuardEntry, GuardId, MAX_CANDIDATES, MAX_CANDIDATES_BY_USERS, MAX_GUARDS,
    MAX_GUARDS_BY_USERS,
};

use crate::{
    atomic::Word,
    audit,
    entry::Entry,
    maps::{ENDED, GUARDS},
    spoiled,
};

/// How many guards are held, candidates left out. At 0 no tripwire has anything
/// to notice, and none looks.
static HELD: Word = Word::new();

/// Whether any guard is held.
#[inline(always)]
pub(crate) fn is_any_held() -> bool {
    HELD.get() != 0
}

/// How many of them are guards of users.
static HELD_BY_USERS: Word = Word::new();

/// How many have ended whose marks user space has not removed.
pub(crate) static STALE: Word = Word::new();

/// Counts the guard among those that are held: 1 if there was room for it, else 0. Comes
/// before its marks. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hold(id: GuardId) -> u64 {
    let Some(entry) = Entry::of(id) else { return 0 };
    let flags = entry.flags();
    if flags & GuardEntry::HELD != 0 {
        return 1;
    }
    // Root's guards find room.
    let by_user = flags & GuardEntry::BY_USER != 0;
    if HELD.get() >= u64::from(MAX_GUARDS)
        || by_user && HELD_BY_USERS.get() >= u64::from(MAX_GUARDS_BY_USERS)
    {
        return 0;
    }
    let counted = match by_user {
        true => GuardEntry::HELD | GuardEntry::HELD_BY_USER,
        false => GuardEntry::HELD,
    };
    // A checkpointer may be writing a freezer of v1 and one of v2 at once.
    if entry.set_flags(counted) & GuardEntry::HELD == 0 {
        HELD.add(1);
        if by_user {
            HELD_BY_USERS.add(1);
        }
    }
    1
}

/// Takes the guard with these flags out of that count.
#[inline(always)]
pub(crate) fn is_held_no_more(flags: u64) {
    // No branches: the verifier would walk the rest once for each.
    let minus_one_if = |flag| u64::from(flags & flag != 0).wrapping_neg();
    HELD.add(minus_one_if(GuardEntry::HELD));
    HELD_BY_USERS.add(minus_one_if(GuardEntry::HELD_BY_USER));
}

/// Ends the guard, tells the readers, and keeps what became of it until somebody has read
/// that. Of several that end it at once, the first does all this.
///
/// `remove`: no member is left that will remove the entry. (An entry with members left must
/// not be used again at once: they may be counting in it.) Returns whether this is the first.
#[inline(always)]
pub(crate) fn end(id: GuardId, remove: bool) -> bool {
    end_guard(id, remove.into()) != 0
}

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_guard(id: GuardId, remove: u64) -> u64 {
    let Some(entry) = Entry::of(id) else { return 0 };
    if !entry.end() {
        return 0;
    }
    if entry.flags() & GuardEntry::CLAIMED_FROZEN != 0 {
        // One of its targets was paused. Which, nobody knows any more.
        entry.clear_flags(GuardEntry::FROZEN_BY_US);
    }
    let guard = entry.guard();
    let (is_candidate, flags) = (guard.is_candidate(), entry.flags());
    let is_kept = is_candidate || ENDED.insert(id, guard, u64::from(BPF_ANY)).is_ok();
    if !is_kept {
        entry.set_flags(GuardEntry::UNREAD);
    }
    if is_kept && remove != 0 {
        let _ = GUARDS.remove(id);
    }
    is_held_no_more(flags);
    spoiled::ended(flags);
    match is_candidate {
        true => was_candidate(flags),
        false => audit::emit(id, EventKind::Ended, CgroupKey::new(0, 0)),
    }
    1
}

/// How many candidates there are. Those of users leave root's room alone.
static BY_ROOT: Word = Word::new();
static BY_USERS: Word = Word::new();

/// The count of candidates with these flags, and the most that there can be.
#[inline(always)]
pub(crate) fn candidates(flags: u64) -> (&'static Word, u32) {
    match flags & GuardEntry::BY_USER {
        0 => (&BY_ROOT, MAX_CANDIDATES),
        _ => (&BY_USERS, MAX_CANDIDATES_BY_USERS),
    }
}

/// How many candidates there are.
#[inline(always)]
pub(crate) fn all_candidates() -> u64 {
    BY_ROOT.get() + BY_USERS.get()
}

/// A candidate with these flags has gone, or has become a guard.
#[inline(always)]
pub(crate) fn was_candidate(flags: u64) {
    candidates(flags).0.add(u64::MAX);
}
