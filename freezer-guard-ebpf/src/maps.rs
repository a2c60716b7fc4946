//! The maps. User space pins every one under its name.
//!
//! All are preallocated: `task_free` and the tracepoint run where a program
//! may not allocate.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, RingBuf},
};
use freezer_guard_ebpf::{
    AncestorKey, CgroupKey, Guard, GuardId, Intruder, IntruderKey, KernelOffsets, MAX_GUARDS,
    MAX_INTRUDERS, MAX_MEMBERS, RING_BYTES, TaskPointer,
};

/// Targets and ancestors: a guard has one or two of the former and, on real
/// hosts, fewer than ten of the latter.
const MAX_MARKS: u32 = 16 * MAX_GUARDS;

#[map]
pub(crate) static GUARDS: HashMap<GuardId, Guard> = HashMap::with_max_entries(MAX_GUARDS, 0);
#[map]
pub(crate) static TARGETS: HashMap<CgroupKey, GuardId> = HashMap::with_max_entries(MAX_MARKS, 0);
#[map]
pub(crate) static ANCESTORS: HashMap<AncestorKey, GuardId> =
    HashMap::with_max_entries(MAX_MARKS, 0);
#[map]
pub(crate) static MEMBERS: HashMap<TaskPointer, GuardId> =
    HashMap::with_max_entries(MAX_MEMBERS, 0);
#[map]
pub(crate) static INTRUDERS: HashMap<IntruderKey, Intruder> =
    HashMap::with_max_entries(MAX_INTRUDERS, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Filled in before the load; see [`KernelOffsets`].
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: KernelOffsets = KernelOffsets {
    file_f_inode: 0,
    file_f_path: 0,
    path_dentry: 0,
    inode_i_sb: 0,
    inode_i_ino: 0,
    inode_i_private: 0,
    super_block_s_magic: 0,
    dentry_d_name: 0,
    dentry_d_parent: 0,
    dentry_d_inode: 0,
    qstr_len: 0,
    qstr_name: 0,
    kernfs_node_priv: 0,
    cgroup_root: 0,
    cgroup_root_hierarchy_id: 0,
    task_struct_tgid: 0,
    task_struct_pid: 0,
};

/// The guard's entry, if it is in force.
#[inline(always)]
pub(crate) fn guard(id: GuardId) -> Option<*mut Guard> {
    GUARDS.get_ptr_mut(id)
}
