//! Why the kernel side does what it does, for the service's log.
//!
//! Only in cold places, and only numbers: no name that somebody has chosen comes in here. User
//! space sets the level before the load, in read-only data, so that the verifier removes what
//! is below it.

use aya_log_ebpf::{
    error,
    macro_support::{AYA_LOG_LEVEL, Level, level_enabled},
};
use freezer_guard_abi::{CgroupKey, LogLine};

/// Writes the line with these numbers, if its level is on.
#[inline(always)]
pub(crate) fn write(line: LogLine, numbers: [u64; 4]) {
    if line.level() as u8 <= AYA_LOG_LEVEL.load() {
        let [a, b, c, d] = numbers;
        write_line(line as u64, a, b, c, d);
    }
}

/// The same about a cgroup.
#[inline(always)]
pub(crate) fn write_of(line: LogLine, actor: u64, cgroup: CgroupKey) {
    let CgroupKey {
        hierarchy_id,
        kernfs_id,
        ..
    } = cgroup;
    write(line, [actor, hierarchy_id.into(), kernfs_id, 0]);
}

/// A global function (see `lookup`), so that the caller's frame does not hold the macro's
/// buffers. (aya's level is the lowest: each line has its own.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_line(line: u64, a: u64, b: u64, c: u64, d: u64) -> u64 {
    if level_enabled(Level::Error) {
        error!((), "{}{}{}{}{}", line, a, b, c, d);
    }
    0
}
