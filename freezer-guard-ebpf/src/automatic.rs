//! Guards that nobody asked for: who executes a checkpointer is a candidate, and
//! the freezer that a candidate writes is guarded from that very write on.
//!
//! A candidate has an entry among the guards, as its holder to be, and no target
//! yet: so its descendants are counted like those of any holder.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_ktime_get_boot_ns,
};
use freezer_guard_abi::{
    AUTOMATIC, AncestorKey, CgroupKey, EventKind, GuardEntry, GuardId, LogLine, MAX_DEPTH_BY_USER,
    Unguarded,
};

use crate::{
    audit,
    authority::Credentials,
    each::{self, GO_ON, STOP},
    entry::Entry,
    freezer::{self, FREEZING_SELF},
    kernel::{self, Pointer, load, offset, probe},
    lifetime, log,
    lookup::{self, Found},
    maps::{ANCESTORS, GUARDS, MEMBERS, TARGETS, TEMPLATES, TURNS},
    membership,
    writes::any_below,
};

/// The name of the checkpointer's file, as it is compared.
const CRIU: u32 = u32::from_ne_bytes(*b"criu");

/// `S_IFMT`, `S_IFREG`, and `S_IWGRP | S_IWOTH` of `linux/stat.h`.
const FILE_TYPE: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;
const WRITABLE_BY_OTHERS: u16 = 0o022;

/// `MNT_NOSUID` of `linux/mount.h`.
const MNT_NOSUID: u32 = 1;

/// `struct linux_binprm *`: the current task executes this file from here on.
#[inline(always)]
pub(crate) fn executed(bprm: Pointer) {
    let Some(template) = TEMPLATES.get(AUTOMATIC) else {
        return;
    };
    if template.members == 0 {
        return;
    }
    let pid = kernel::tgid(kernel::current()).into();
    let Some(is_trusted) = is_trusted(bprm, pid) else {
        return;
    };
    // Who belongs to a holder is guarded already.
    if membership::of_current().is_some() {
        return;
    }
    let Some(owner) = Credentials::of(kernel::current()) else {
        return;
    };
    // A file proves nothing: `LD_PRELOAD` and ptrace make anything of a process. Only
    // credentials do.
    if !owner.is_checkpointer() && template.flags & GuardEntry::BY_USER == 0 {
        let uid = owner.uid.into();
        return log::write(LogLine::WrongCredentials, [pid, uid, 0, 0]);
    }
    let leader = kernel::task(kernel::current());
    // SAFETY: no preconditions.
    let id = unsafe { bpf_ktime_get_boot_ns() };
    if !is_trusted {
        if owner.is_checkpointer() {
            unguarded(id, CgroupKey::default(), Unguarded::Untrusted);
        }
        return;
    }
    let mut candidate = GuardEntry {
        leader,
        flags: template.flags & GuardEntry::FAILS_DUMP,
        ..*template
    };
    if !owner.is_root_of_host() {
        candidate.flags |= GuardEntry::BY_USER;
        candidate.owner_uid = owner.uid.into();
        candidate.owner_ns = owner.user_ns;
    }
    let (candidates, most) = lifetime::candidates(candidate.flags);
    if candidates.get() >= u64::from(most) || !Entry::make(id, &candidate) {
        return unguarded(id, CgroupKey::default(), Unguarded::Full);
    }
    if MEMBERS.insert(leader, id, u64::from(BPF_ANY)).is_err() {
        let _ = GUARDS.remove(id);
        return unguarded(id, CgroupKey::default(), Unguarded::Full);
    }
    candidates.add(1);
    audit::emit(id, EventKind::Candidate, CgroupKey::default());
}

/// Returns whether nobody but root can have put the file there, if it is called CRIU.
#[inline(always)]
fn is_trusted(bprm: Pointer, pid: u64) -> Option<bool> {
    // SAFETY: `bprm` is the hook's argument; everything is loaded from it.
    let (inode, mount, name, length) = unsafe {
        let file: Pointer = load(bprm, offset!(linux_binprm_file));
        let dentry: Pointer = load(file, offset!(file_f_path) + offset!(path_dentry));
        let inode: Pointer = load(file, offset!(file_f_inode));
        let mount: Pointer = load(file, offset!(file_f_path) + offset!(path_mnt));
        let d_name = offset!(dentry_d_name);
        let name: Pointer = load(dentry, d_name + offset!(qstr_name));
        let length: u32 = load(dentry, d_name + offset!(qstr_len));
        (inode, mount, name, length)
    };
    if length as usize != size_of_val(&CRIU) || probe(name, 0) != Some(CRIU) {
        return None;
    }
    // SAFETY: loaded from the hook's argument, as above.
    let (uid, mode, flags, level) = unsafe {
        let super_block: Pointer = load(inode, offset!(inode_i_sb));
        let user_ns: Pointer = load(super_block, offset!(super_block_s_user_ns));
        (
            load::<u32>(inode, offset!(inode_i_uid)),
            load::<u16>(inode, offset!(inode_i_mode)),
            load::<u32>(mount, offset!(vfsmount_mnt_flags)),
            load::<u32>(user_ns, offset!(user_namespace_level)),
        )
    };
    if uid != 0 {
        log::write(LogLine::WrongOwner, [pid, uid.into(), 0, 0]);
        return Some(false);
    }
    if mode & FILE_TYPE != REGULAR || mode & WRITABLE_BY_OTHERS != 0 {
        log::write(LogLine::WrongMode, [pid, mode.into(), 0, 0]);
        return Some(false);
    }
    // A user who mounts a file system chooses the owners of its files.
    if flags & MNT_NOSUID != 0 || level != 0 {
        log::write(LogLine::WrongMount, [pid, 0, 0, 0]);
        return Some(false);
    }
    Some(true)
}

/// Whether the current task executes CRIU. Those that CRIU has started or restored do not.
#[inline(always)]
fn executes_criu() -> bool {
    let dentry = || -> Option<Pointer> {
        let mm: Pointer = probe(kernel::current(), offset!(task_struct_mm))?;
        let file: Pointer = probe(mm, offset!(mm_struct_exe_file))?;
        probe(file, offset!(file_f_path) + offset!(path_dentry))
    };
    let is_criu = |dentry| -> Option<bool> {
        let d_name = offset!(dentry_d_name);
        let length: u32 = probe(dentry, d_name + offset!(qstr_len))?;
        let name: Pointer = probe(dentry, d_name + offset!(qstr_name))?;
        Some(length as usize == size_of_val(&CRIU) && probe(name, 0) == Some(CRIU))
    };
    dentry().and_then(is_criu) == Some(true)
}

/// `freezer_apply_state(freezer, freeze, state)` is about to begin.
#[inline(always)]
pub(crate) fn writes_v1(freezer: Pointer, freeze: bool, state: u32) {
    let cgroup = offset!(freezer_css) + offset!(cgroup_subsys_state_cgroup);
    let is_frozen = freezer::is_frozen_v1(freezer);
    if state & FREEZING_SELF != 0
        && (freeze || is_frozen)
        && let Some(cgroup) = probe(freezer, cgroup)
    {
        claim(cgroup, is_frozen);
    }
}

/// `cgroup_freeze(cgrp, freeze)` is about to begin.
#[inline(always)]
pub(crate) fn writes_v2(cgroup: Pointer, freeze: bool) {
    let is_frozen = freezer::is_frozen_v2(cgroup);
    if freeze || is_frozen {
        claim(cgroup, is_frozen);
    }
}

/// `freezer_read(seq, v)`: a read of `freezer.state`.
#[inline(always)]
pub(crate) fn reads_v1(seq: Pointer) {
    if let Some((id, cgroup)) = read_by_candidate(seq)
        && let Some(state) = lookup::state_of_freezer(cgroup, offset!(cgroup_subsys))
        && freezer::is_frozen_v1(state.wrapping_byte_sub(offset!(freezer_css)))
    {
        claim_found(id, cgroup);
    }
}

/// `cgroup_freeze_show(seq, v)`: a read of `cgroup.freeze`.
#[inline(always)]
pub(crate) fn reads_v2(seq: Pointer) {
    if let Some((id, cgroup)) = read_by_candidate(seq)
        && freezer::is_frozen_v2(cgroup)
    {
        claim_found(id, cgroup);
    }
}

/// A candidate takes a cgroup that is frozen.
#[inline(always)]
fn claim_found(id: GuardId, cgroup: Pointer) {
    let was_left = freezer::was_left(kernel::number(cgroup)) != 0;
    claim_for(id, kernel::number(cgroup), pack(true, was_left));
}

/// The cgroup whose freezer a candidate is about to read: if an engine has paused it, the
/// checkpointer writes its freezer only after it has seized the tasks. A checkpointer that guards
/// something may read any freezer.
#[inline(always)]
fn read_by_candidate(seq: Pointer) -> Option<(GuardId, Pointer)> {
    let id = membership::of_current()?;
    Entry::of(id).filter(|entry| entry.guard().is_candidate() && executes_criu())?;
    let file: Pointer = probe(seq, offset!(seq_file_private))?;
    let node: Pointer = probe(file, offset!(kernfs_open_file_kn))?;
    let directory: Pointer = probe(node, offset!(kernfs_node_parent))?;
    Some((id, probe(directory, offset!(kernfs_node_priv))?))
}

/// The cgroup is frozen, or is about to be, and its freezer is about to be written, under a
/// mutex of the kernel's. If a checkpointer does that, it guards the cgroup from here on.
#[inline(always)]
fn claim(cgroup: Pointer, is_frozen: bool) {
    let was_left = freezer::takes_over(cgroup);
    let Some(id) = membership::of_current() else {
        return;
    };
    if Entry::of(id).is_some_and(|entry| entry.guard().is_automatic()) && executes_criu() {
        claim_for(id, kernel::number(cgroup), pack(is_frozen, was_left));
    }
}

/// The flag for a cgroup that is frozen: by its engine, or by a checkpointer that has gone.
#[inline(always)]
fn pack(is_frozen: bool, was_left: bool) -> u64 {
    match (is_frozen, was_left) {
        (false, _) => 0,
        (true, false) => GuardEntry::CLAIMED_FROZEN,
        (true, true) => GuardEntry::FROZEN_BY_US | GuardEntry::LEFT_FROZEN,
    }
}

/// The guard of a checkpointer takes the cgroup, and gets these flags. A global function: see
/// `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_for(id: GuardId, cgroup: u64, flags: u64) -> u64 {
    take(id, cgroup as Pointer, flags);
    0
}

#[inline(always)]
fn take(id: GuardId, cgroup: Pointer, flags: u64) {
    let Some(entry) = Entry::of(id) else { return };
    let Some(key) = lookup::key(cgroup) else {
        return;
    };
    match lookup::of_cgroup(cgroup) {
        Found::Nobody => {}
        Found::Guard(own) if own == id => return,
        Found::Guard(_) | Found::TooDeep => return unguarded(id, key, Unguarded::Busy),
    }
    if any_below(key, id).is_some() {
        return unguarded(id, key, Unguarded::Busy);
    }
    if TARGETS.get_ptr(key).is_some() {
        // A dead guard's.
        let _ = TARGETS.remove(key);
    }
    // The marks of a user leave room for those of root.
    if entry.flags() & GuardEntry::BY_USER != 0
        && (entry.is_checkpointing()
            || probe::<u32>(cgroup, offset!(cgroup_level))
                .is_none_or(|level| level > MAX_DEPTH_BY_USER))
    {
        return unguarded(id, key, Unguarded::Full);
    }
    // What is done to it from here on counts; a moment later, as a violation.
    if lifetime::hold(id) == 0 || TARGETS.insert(key, id, u64::from(BPF_NOEXIST)).is_err() {
        return unguarded(id, key, Unguarded::Full);
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if !entry.is_checkpointing() && entry.set_checkpointing(now) == 0 {
        entry.set_begun(now, key);
        lifetime::was_candidate(entry.flags());
    }
    mark_ancestors(cgroup, id);
    entry.set_flags(flags);
    if is_inside(cgroup) {
        entry.set_flags(GuardEntry::ENDS_WITH_LEADER);
    }
    audit::emit_begun(id, entry, key);
}

/// Whether the current task is in the cgroup, or below it, that was claimed just now.
#[inline(always)]
fn is_inside(cgroup: Pointer) -> bool {
    let current = kernel::current();
    let own = match probe::<Pointer>(cgroup, offset!(cgroup_root))
        .and_then(|root| probe::<u32>(root, offset!(cgroup_root_hierarchy_id)))
    {
        Some(0) => lookup::v2_of(current),
        _ => lookup::v1_of(current),
    };
    let own = own.map(lookup::of_cgroup);
    matches!(own, Some(Found::Guard(id)) if Some(id) == membership::of_current())
}

/// Marks each ancestor. What does not fit is marked by `arm`.
#[inline(always)]
fn mark_ancestors(cgroup: Pointer, id: GuardId) {
    if let Some(parent) = lookup::parent(cgroup) {
        mark_line(parent, id);
    }
}

/// Marks the cgroup and each ancestor.
#[inline(always)]
pub(crate) fn mark_line(cgroup: Pointer, id: GuardId) {
    let mut marking = Marking {
        cgroup: cgroup as u64,
        id,
    };
    each::element(&TURNS, mark_and_climb, &mut marking);
}

/// The way up from a cgroup that this guard has claimed.
struct Marking {
    cgroup: u64,
    id: GuardId,
}

extern "C" fn mark_and_climb(
    _: *const c_void,
    _: *const u32,
    _: *mut u8,
    marking: *mut Marking,
) -> u64 {
    // SAFETY: `mark_line` passes it, from its own stack.
    let marking = unsafe { &mut *marking };
    let cgroup = marking.cgroup as Pointer;
    if let Some(key) = lookup::key(cgroup) {
        for guard in [marking.id, AncestorKey::ANY] {
            let key = AncestorKey::new(key, guard);
            let _ = ANCESTORS.insert(key, marking.id, u64::from(BPF_ANY));
        }
    }
    match lookup::parent(cgroup) {
        Some(parent) => {
            marking.cgroup = parent as u64;
            GO_ON
        }
        None => STOP,
    }
}

#[inline(always)]
pub(crate) fn unguarded(id: GuardId, cgroup: CgroupKey, why: Unguarded) {
    leave_unguarded(id, cgroup.hierarchy_id.into(), cgroup.kernfs_id, why as u64);
}

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leave_unguarded(id: GuardId, hierarchy: u64, kernfs_id: u64, why: u64) -> u64 {
    let cgroup = CgroupKey::new(hierarchy as u32, kernfs_id);
    if why == Unguarded::Busy as u64 {
        log::write_of(LogLine::ClaimIsBusy, id, cgroup);
    } else if why == Unguarded::Full as u64 {
        log::write_of(LogLine::ClaimIsFull, id, cgroup);
    }
    audit::emit_why(id, EventKind::Unguarded, cgroup, why as u32);
    0
}
