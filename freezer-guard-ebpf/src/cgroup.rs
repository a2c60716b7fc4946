//! Is this a write to a protected file of a guarded cgroup?

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use freezer_guard_ebpf::{
    Act, CgroupKey, GuardId, MAX_DEPTH, PROTECTED_FILES, Place, Protection, acts_downwards, denies,
    name_words,
};

use crate::{
    covering::{Covering, below, minds},
    kernel::{Pointer, load, offset, opaque, probe},
    maps::{TARGETS, guard},
    membership, migration,
    telling::{self, Deed, EBUSY},
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

/// The answer of `file_permission` for a write to `file`, which is a cgroup's.
///
/// Not inlined: what it needs of the stack and of registers costs every read where it
/// is.
#[inline(never)]
pub(crate) fn check_write(file: Pointer) -> i32 {
    // SAFETY: `file` is the hook's argument; everything is loaded from it.
    let dentry: Pointer = unsafe { load(file, offset!(file_f_path) + offset!(path_dentry)) };
    let Some((index, protection)) = protected_file(dentry) else {
        return 0;
    };
    // SAFETY: as above.
    let directory: Pointer = unsafe { load(dentry, offset!(dentry_d_parent)) };
    let Some(hierarchy_id) = hierarchy_id(directory) else {
        return 0;
    };
    // The verifier shall not walk what follows once for each of the names.
    let write = Write {
        index: opaque(index),
        protection: Protection::numbered(opaque(protection as u32)),
        hierarchy_id,
    };
    write.check(directory)
}

/// The place of the file in [`PROTECTED_FILES`], by its name.
#[inline(always)]
fn protected_file(dentry: Pointer) -> Option<(u32, Protection)> {
    // SAFETY: `dentry` was loaded from the hook's argument.
    let (length, name): (u32, Pointer) = unsafe {
        let d_name = offset!(dentry_d_name);
        (
            load(dentry, d_name + offset!(qstr_len)),
            load(dentry, d_name + offset!(qstr_name)),
        )
    };
    if !(5..16).contains(&length) {
        return None;
    }
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
            return Some((index as u32, PROTECTED_FILES[index].protection));
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

/// The hierarchy of a cgroup's directory.
#[inline(always)]
fn hierarchy_id(directory: Pointer) -> Option<u32> {
    // SAFETY: `directory` was loaded from the hook's argument.
    let node: Pointer = unsafe {
        let inode: Pointer = load(directory, offset!(dentry_d_inode));
        load(inode, offset!(inode_i_private))
    };
    let cgroup: Pointer = probe(node, offset!(kernfs_node_priv))?;
    let root: Pointer = probe(cgroup, offset!(cgroup_root))?;
    probe(root, offset!(cgroup_root_hierarchy_id))
}

/// A write to a protected file.
struct Write {
    index: u32,
    protection: Protection,
    hierarchy_id: u32,
}

impl Write {
    #[inline(always)]
    fn check(&self, directory: Pointer) -> i32 {
        let written = self.key(directory);
        let writer = membership::writer();
        let refusing = match self.way_up(directory) {
            // Not knowing must not let anything through.
            Covering::TooDeep => return -EBUSY,
            Covering::Guard(id) if self.refuses(id, writer) => Some(id),
            Covering::Guard(_) | Covering::Nobody if acts_downwards(self.protection) => {
                below(written, self.protection.bit(), writer)
            }
            Covering::Guard(_) | Covering::Nobody => None,
        };
        match refusing {
            Some(id) => {
                let deed = Deed {
                    act: Act::Write,
                    protection: self.protection,
                    detail: self.index,
                    cgroup: written,
                    victim: 0,
                };
                telling::refused(id, &deed);
                -EBUSY
            }
            None if matches!(self.protection, Protection::Migrate) && self.hierarchy_id != 0 => {
                migration::check_v1(written, self.index, writer)
            }
            None => 0,
        }
    }

    #[inline(always)]
    fn way_up(&self, directory: Pointer) -> Covering {
        let mut cgroup = directory;
        for _ in 0..MAX_DEPTH {
            if let Some(id) = TARGETS.get_ptr(self.key(cgroup)) {
                // SAFETY: a map value the verifier has seen checked.
                let id = unsafe { *id };
                // What a dead guard has left must not hide one further up.
                if guard(id).is_some() {
                    return Covering::Guard(id);
                }
            }
            // SAFETY: `cgroup` was loaded from the hook's argument.
            let parent: Pointer = unsafe { load(cgroup, offset!(dentry_d_parent)) };
            if parent == cgroup {
                return Covering::Nobody;
            }
            cgroup = parent;
        }
        Covering::TooDeep
    }

    /// Whether the guard is in force and refuses the write, which is inside.
    #[inline(always)]
    fn refuses(&self, id: GuardId, writer: Option<GuardId>) -> bool {
        denies(id, Place::Inside, self.protection, writer) && minds(id, self.protection, writer)
    }

    #[inline(always)]
    fn key(&self, directory: Pointer) -> CgroupKey {
        // SAFETY: `directory` was loaded from the hook's argument.
        let kernfs_id = unsafe {
            let inode: Pointer = load(directory, offset!(dentry_d_inode));
            load(inode, offset!(inode_i_ino))
        };
        CgroupKey::new(self.hierarchy_id, kernfs_id)
    }
}
