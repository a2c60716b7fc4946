//! The processes that are checkpointers. Each has an entry among the guards, as the holder to be of
//! a guard without a target: a **candidate**. So its descendants are counted like those of any holder.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel_str},
};
use freezer_guard_abi::{
    AUTOMATIC, CgroupKey, EventKind, FileName, GuardEntry, GuardId, LogLine, Unguarded,
};

use crate::{
    audit,
    authority::Credentials,
    entry::Entry,
    kernel::{self, Pointer, load, offset, probe},
    lifetime, log,
    maps::{CHECKPOINTERS, GUARDS, MEMBERS, TEMPLATES},
    membership,
};

/// `S_IFMT`, `S_IFREG`, and `S_IWGRP | S_IWOTH` of `linux/stat.h`.
const FILE_TYPE: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;
const WRITABLE_BY_OTHERS: u16 = 0o022;

/// `MNT_NOSUID` of `linux/mount.h`.
const MNT_NOSUID: u32 = 1;

/// `struct linux_binprm *`: the current task executes this file from here on.
#[inline(always)]
pub(crate) fn executed(bprm: Pointer) {
    // SAFETY: `bprm` is the hook's argument.
    let file: Pointer = unsafe { load(bprm, offset!(linux_binprm_file)) };
    // A task of a holder is guarded already.
    if is_checkpointer(file) && membership::of_current().is_none() {
        // SAFETY: no preconditions.
        let id = unsafe { bpf_ktime_get_boot_ns() };
        let made = make(kernel::number(file), id);
        tell(made, id);
        match made {
            UNTRUSTED => unguarded(id, CgroupKey::default(), Unguarded::Untrusted),
            // Told once for each program: a user can attach to a task as often as he likes.
            FULL_FOR_USERS => unguarded(id, CgroupKey::default(), Unguarded::Full),
            _ => {}
        }
    }
}

/// The automatic guard of the current task, or its candidate, if it executes a checkpointer. Programs
/// that a checkpointer has started, or restored, do not.
#[inline(always)]
pub(crate) fn of_current() -> Option<GuardId> {
    match checkpointer() {
        0 => None,
        id => Some(id),
    }
}

/// The same as a number; 0 for none. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn checkpointer() -> GuardId {
    const NONE: GuardId = 0;
    let current = kernel::current();
    let Some(file) = executable(current).filter(|file| is_checkpointer(*file)) else {
        return NONE;
    };
    if let Some(id) = membership::of_current() {
        let Some(entry) = Entry::of(id) else {
            return NONE;
        };
        let guard = entry.guard();
        if !guard.is_automatic() {
            return NONE;
        }
        // A service that was moved, or has made a restore, has workers still.
        let is_alone = !guard.is_candidate() && entry.flags() & GuardEntry::RESTORES == 0;
        if is_alone || !is_worker_of(current, guard.leader.0) {
            return id;
        }
    }
    let leader: Option<Pointer> = probe(current, offset!(task_struct_group_leader));
    // Tasks that are older than the process are not its own: see `seize`.
    let Some(mut id) = probe::<u64>(current, offset!(task_struct_start_boottime)) else {
        return NONE;
    };
    if Entry::of_any(id).is_some() {
        // It has made a dump before.
        // SAFETY: no preconditions.
        id = unsafe { bpf_ktime_get_boot_ns() };
    }
    if leader != Some(current) {
        return NONE;
    }
    // It may belong to the checkpointer that has forked it.
    membership::leave(current);
    let made = make(kernel::number(file), id);
    tell(made, id);
    match made {
        MADE => id,
        _ => NONE,
    }
}

/// Whether the current task is a process that a checkpointer has forked to do its work: a worker of
/// `criu service`, or a pre-dump of `criu swrk`. A process that is being restored has left the
/// checkpointer's cgroups, or will never write a freezer.
#[inline(always)]
fn is_worker_of(current: Pointer, leader: u64) -> bool {
    let cgroups = |task| probe::<Pointer>(task, offset!(task_struct_cgroups));
    let leader = leader as Pointer;
    probe(current, offset!(task_struct_group_leader)) != Some(leader)
        && cgroups(current) == cgroups(leader)
}

/// Whether the current task executes a checkpointer.
#[inline(always)]
pub(crate) fn executes_checkpointer() -> bool {
    executes_one(kernel::current())
}

/// Whether this task does.
#[inline(always)]
pub(crate) fn executes_one(task: Pointer) -> bool {
    executable(task).is_some_and(is_checkpointer)
}

/// The file that the task executes.
#[inline(always)]
fn executable(task: Pointer) -> Option<Pointer> {
    let mm: Pointer = probe(task, offset!(task_struct_mm))?;
    let file: Pointer = probe(mm, offset!(mm_struct_exe_file))?;
    (!file.is_null()).then_some(file)
}

/// Answers of [`make`].
const NOT_MADE: u64 = 0;
const MADE: u64 = 1;
const UNTRUSTED: u64 = 2;
const FULL: u64 = 3;
const FULL_FOR_USERS: u64 = 4;

/// Tells the readers of a candidate, or that there was no room for it. (Not in [`make`]: its
/// stack is long, and that of all calls together short.)
#[inline(always)]
fn tell(made: u64, id: GuardId) {
    match made {
        MADE => audit::emit(id, EventKind::Candidate, CgroupKey::default()),
        FULL => unguarded(id, CgroupKey::default(), Unguarded::Full),
        _ => {}
    }
}

/// Makes a candidate of the current task, which executes the file. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make(file: u64, id: GuardId) -> u64 {
    let Some(template) = TEMPLATES.get(AUTOMATIC) else {
        return NOT_MADE;
    };
    let Some(owner) = Credentials::of(kernel::current()) else {
        return NOT_MADE;
    };
    if template.members == 0 {
        return NOT_MADE;
    }
    // A file proves nothing: `LD_PRELOAD` and ptrace make anything of a process. Only
    // credentials do.
    let pid = kernel::tgid(kernel::current()).into();
    if !owner.is_checkpointer() && template.flags & GuardEntry::BY_USER == 0 {
        log::write(LogLine::WrongCredentials, [pid, owner.uid.into(), 0, 0]);
        return NOT_MADE;
    }
    if !is_trusted(file as Pointer, pid) {
        return match owner.is_checkpointer() {
            true => UNTRUSTED,
            false => NOT_MADE,
        };
    }
    let leader = kernel::task(kernel::current());
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
    let full = match candidate.flags & GuardEntry::BY_USER {
        0 => FULL,
        _ => FULL_FOR_USERS,
    };
    let (candidates, most) = lifetime::candidates(candidate.flags);
    if candidates.get() >= u64::from(most) || !Entry::make(id, &candidate) {
        return full;
    }
    if MEMBERS.insert(leader, id, u64::from(BPF_ANY)).is_err() {
        let _ = GUARDS.remove(id);
        return full;
    }
    candidates.add(1);
    MADE
}

/// Whether the file has the name of a checkpointer.
#[inline(always)]
fn is_checkpointer(file: Pointer) -> bool {
    is_named(kernel::number(file)) != 0
}

/// The same as numbers. A global function: see `lookup`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_named(file: u64) -> u64 {
    let d_name = offset!(dentry_d_name);
    let found = || -> Option<FileName> {
        let dentry: Pointer = probe(file as Pointer, offset!(file_f_path) + offset!(path_dentry))?;
        let length: u32 = probe(dentry, d_name + offset!(qstr_len))?;
        let text: Pointer = probe(dentry, d_name + offset!(qstr_name))?;
        let mut name = FileName::default();
        // SAFETY: the helper writes at most as many bytes as there are.
        let read = unsafe {
            bpf_probe_read_kernel_str(
                (&raw mut name).cast(),
                size_of::<FileName>() as u32,
                text.cast(),
            )
        };
        // It counts the zero at the end.
        (read == i64::from(length) + 1).then_some(name)
    };
    found()
        .is_some_and(|name| CHECKPOINTERS.get_ptr(name).is_some())
        .into()
}

/// Returns whether nobody but root can have put the file there.
#[inline(always)]
fn is_trusted(file: Pointer, pid: u64) -> bool {
    let found = || -> Option<(u32, u16, u32, u32)> {
        let inode: Pointer = probe(file, offset!(file_f_inode))?;
        let mount: Pointer = probe(file, offset!(file_f_path) + offset!(path_mnt))?;
        let super_block: Pointer = probe(inode, offset!(inode_i_sb))?;
        let user_ns: Pointer = probe(super_block, offset!(super_block_s_user_ns))?;
        Some((
            probe(inode, offset!(inode_i_uid))?,
            probe(inode, offset!(inode_i_mode))?,
            probe(mount, offset!(vfsmount_mnt_flags))?,
            probe(user_ns, offset!(user_namespace_level))?,
        ))
    };
    let Some((uid, mode, flags, level)) = found() else {
        return false;
    };
    if uid != 0 {
        log::write(LogLine::WrongOwner, [pid, uid.into(), 0, 0]);
        return false;
    }
    if mode & FILE_TYPE != REGULAR || mode & WRITABLE_BY_OTHERS != 0 {
        log::write(LogLine::WrongMode, [pid, mode.into(), 0, 0]);
        return false;
    }
    // The user that mounts a file system chooses the owners of its files.
    if flags & MNT_NOSUID != 0 || level != 0 {
        log::write(LogLine::WrongMount, [pid, 0, 0, 0]);
        return false;
    }
    true
}

/// A checkpointer has no guard, or none of this cgroup.
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
