//! The dumps that are to fail, since their guard was violated.

use freezer_guard_abi::GuardEntry;

use crate::{atomic::Word, entry::Entry};

/// How many of them there are. At 0 no write is looked at for their sake.
static SPOILED: Word = Word::new();

/// Whether there is any.
#[inline(always)]
pub(crate) fn is_any() -> bool {
    SPOILED.get() != 0
}

/// The guard was violated.
#[inline(always)]
pub(crate) fn violated(entry: Entry) {
    if entry.flags() & GuardEntry::FAILS_DUMP != 0
        && entry.set_flags(GuardEntry::SPOILED) & GuardEntry::SPOILED == 0
    {
        SPOILED.add(1);
    }
}

/// The guard with these flags has ended. (If it was violated at that very moment, the count stays
/// too large, and writes are looked at in vain until the programs are loaded anew.)
#[inline(always)]
pub(crate) fn ended(flags: u64) {
    SPOILED.add(u64::from(flags & GuardEntry::SPOILED != 0).wrapping_neg());
}
