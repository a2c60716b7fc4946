//! Is this a write to a protected file of a guarded cgroup?

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use freezer_guard_abi::{
    Act, LogLine, PROTECTED_FILES, Place, Protection, acts_downwards, name_words, protection_of,
};

use crate::{
    audit::{self, Access, EBUSY},
    kernel::{self, Pointer, load, offset, opaque, probe},
    log,
    lookup::{self, Found},
    membership, migration,
    writes::{refuses_below, refuses_inside},
};

/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const CGROUP_SUPER_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Whether the file is one of a cgroup's.
#[inline(always)]
pub(crate) fn is_in_cgroup(file: Pointer) -> bool {
    // SAFETY: `file` is the hook's argument; everything is loaded from it.
    let magic: u64 = unsafe {
        let inode: Pointer = load(file, offset!(file_f_inode));
        let super_block: Pointer = load(inode, offset!(inode_i_sb));
        load(super_block, offset!(super_block_s_magic))
    };
    magic == CGROUP2_SUPER_MAGIC || magic == CGROUP_SUPER_MAGIC
}

/// The answer of `file_permission` for a write to `file`, which is a cgroup's. `WITH_V1`:
/// whether guarded tasks may be in cgroups of v1.
///
/// Not inlined: what it needs of the stack and of registers costs every read where it
/// is.
#[inline(never)]
pub(crate) fn check_write<const WITH_V1: bool>(file: Pointer) -> i32 {
    // SAFETY: `file` is the hook's argument; everything is loaded from it.
    let node: Pointer = unsafe {
        let inode: Pointer = load(file, offset!(file_f_inode));
        load(inode, offset!(inode_i_private))
    };
    let Some(index) = protected_file(node) else {
        return 0;
    };
    // The file's node lies in that of its cgroup.
    let Some(cgroup) = probe::<Pointer>(node, offset!(kernfs_node_parent))
        .and_then(|directory| probe::<Pointer>(directory, offset!(kernfs_node_priv)))
    else {
        return 0;
    };
    let (cgroup, index) = (cgroup as u64, index.into());
    // The verifier wants to see each answer of a hook.
    match check_file(cgroup, index) != 0 || WITH_V1 && check_v1_move(cgroup, index) != 0 {
        true => -EBUSY,
        false => 0,
    }
}

/// The place of the file in [`PROTECTED_FILES`], by its name. (Not by its dentry's: that of
/// a file that was opened by handle may have none.)
#[inline(always)]
fn protected_file(node: Pointer) -> Option<u32> {
    let name: Pointer = probe(node, offset!(kernfs_node_name))?;
    let mut words = MaybeUninit::<[u64; 2]>::uninit();
    let start = words.as_mut_ptr().cast::<u64>();
    // SAFETY: both words are written, word by word since `[0; 2]` would become a
    // loop over bytes; the helper writes at most 16 bytes and checks the source.
    let words = unsafe {
        start.write_volatile(0);
        start.add(1).write_volatile(0);
        if bpf_probe_read_kernel_str(start.cast(), 16, name) < 0 {
            return None;
        }
        words.assume_init()
    };
    let mut index = 0;
    while index < PROTECTED_FILES.len() {
        if words == NAMES[index] {
            // The verifier shall not walk what follows once for each of the names.
            return Some(opaque(index as u32));
        }
        index += 1;
    }
    None
}

/// The names of [`PROTECTED_FILES`] as they are compared.
const NAMES: [[u64; 2]; PROTECTED_FILES.len()] = {
    let mut names = [[0; 2]; PROTECTED_FILES.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = name_words(PROTECTED_FILES[index].name);
        index += 1;
    }
    names
};

/// Whether a write to the file with this place in [`PROTECTED_FILES`] is refused: 0 or 1. A
/// global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_file(cgroup: u64, index: u64) -> u64 {
    let cgroup = cgroup as Pointer;
    let protection = protection_of(index as u32);
    let Some(written) = lookup::key(cgroup) else {
        return 0;
    };
    let writer = membership::writer();
    let refusing = match lookup::of_cgroup(cgroup) {
        Found::TooDeep => {
            let is_refused = lookup::too_deep_for_current();
            if is_refused {
                let pid = kernel::tgid(kernel::current()).into();
                log::write_of(LogLine::TooDeep, pid, written);
            }
            return is_refused.into();
        }
        Found::Guard(id) if refuses_inside(id, protection, writer) => Some(id),
        Found::Guard(_) | Found::Nobody if acts_downwards(protection) => {
            refuses_below(written, protection, Place::Above, writer)
        }
        Found::Guard(_) | Found::Nobody => None,
    };
    let Some(id) = refusing else { return 0 };
    let mut access = Access::new(Act::Write, protection, written);
    access.detail = index as u32;
    audit::refused(id, &access);
    1
}

/// Whether a write that [`check_file`] does not mind is refused, 0 or 1: on v1 it may move a
/// task out of a target. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_v1_move(cgroup: u64, index: u64) -> u64 {
    let index = index as u32;
    match lookup::key(cgroup as Pointer) {
        Some(written)
            if written.hierarchy_id != 0 && matches!(protection_of(index), Protection::Migrate) =>
        {
            migration::moves_out(written, index, membership::writer()).into()
        }
        _ => 0,
    }
}
