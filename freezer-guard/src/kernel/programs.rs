//! The programs and the hooks they are attached to: the one table of both.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use aya_obj::generated::{
    bpf_attach_type::{self, *},
    bpf_prog_type::{self, *},
};
use freezer_guard_abi::{Level, Protection, kfuncs};

use super::Error;
use crate::quirks::{FREEZER_ID, MEMORY_OWNER};

/// What a program is attached to.
#[derive(Debug, Clone, Copy)]
enum Hook {
    /// An LSM hook; at the level `best-effort` the function that calls it.
    Lsm(&'static str),
    /// The tracepoint with the program's own name.
    Tracepoint,
    /// The beginning of a kernel function.
    Entry(&'static str),
    /// The return of one.
    Exit(&'static str),
}

/// Which guards need a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NeededBy {
    All,
    /// Those whose tasks are in cgroups of v1. On a hybrid host that is every guard.
    V1,
    /// Those whose tasks are in cgroups of v2.
    V2,
    /// Those whose tasks are in cgroups of v2, while no guarded task is in one of v1.
    OnlyV2,
}

/// What a program is there for.
#[derive(Debug, Clone, Copy)]
enum Role {
    /// Counts the members of holders, and notices moves. No guard goes without it.
    Membership,
    /// Notices what the protection is about.
    Notices(Protection),
    /// Notices the same, in a function that only root can cause the kernel to call.
    NoticesRoot(Protection),
    /// Notices a call that began before the guard, so it is there while checkpointers are watched. The
    /// levels do not depend on it.
    NoticesMore,
    /// Notices that no program is called from here on.
    Proof,
    /// Refuses what these protections are about.
    Refuses(&'static [Protection]),
    /// Notices a checkpointer that nobody has guarded.
    Trigger,
    /// One of those that refuse moves on v2, and only together: one flags a
    /// thread, one refuses what is flagged, one takes the flag away.
    RefusesMoves,
}

/// At which levels a program is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Any,
    /// Where a program on an LSM hook is called and never left out.
    Enforce,
    /// Where there is none.
    Below,
    /// Where something is refused.
    AboveDetect,
}

/// Which kinds of target the guards in force have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Some are on v1.
    pub v1: bool,
    /// Some are on v2.
    pub v2: bool,
}

/// How far each protection goes, by [`Protection`]; `None`: not even noticed.
pub type Levels = [Option<Level>; Protection::COUNT];

/// A program that is attached while guards need it.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    hook: Hook,
    needed_by: NeededBy,
    role: Role,
    at: At,
}

const fn program_on(
    name: &'static str,
    hook: Hook,
    needed_by: NeededBy,
    role: Role,
    at: At,
) -> Program {
    Program {
        name,
        hook,
        needed_by,
        role,
        at,
    }
}

/// In the order in which they are attached: membership first, so that whatever
/// can be a holder is counted from the start; then what counts disturbances,
/// then what refuses.
///
/// A program on a function may be left out when it interrupts itself on a
/// preemptible kernel. So each that notices sits where that cannot happen, but
/// for those that notice ptrace and writes to memory: see `report::missed`.
#[rustfmt::skip]
pub(super) const PROGRAMS: [Program; 31] = {
    use At::{AboveDetect, Any, Below, Enforce};
    use Hook::{Entry, Exit, Lsm, Tracepoint};
    use NeededBy::{All, OnlyV2, V1, V2};
    use Protection::{Freeze, Kill, Migrate, Ptrace};
    use Role::{Membership, Notices, NoticesMore, NoticesRoot, Proof, Refuses, RefusesMoves, Trigger};
    [
        program_on("move_task_exit", Exit("css_set_move_task"), All, Membership, Any),
        program_on("task_free", Lsm("task_free"), All, Membership, Enforce),
        program_on("task_alloc", Lsm("task_alloc"), All, Membership, Enforce),
        program_on("number_set_exit", Exit("proc_dointvec"), All, Proof, Any),
        program_on("signal_generate", Tracepoint, All, Notices(Kill), Any),
        program_on("ptrace_attach_exit", Exit("ptrace_attach"), All, Notices(Ptrace), Any),
        program_on("remote_vm_exit", Exit("access_remote_vm"), All, Notices(Ptrace), Any),
        program_on("process_vm_exit", Exit("process_vm_rw"), All, NoticesMore, Any),
        program_on("set_swbp_exit", Exit("set_swbp"), All, NoticesRoot(Ptrace), Any),
        program_on("clear_refs_exit", Exit("clear_refs_write"), All, Notices(Ptrace), Any),
        program_on("ptrace_access_exit", Exit("security_ptrace_access_check"), All, Notices(Ptrace), Below),
        // The return before the entry: it finds only values that an entry has left.
        program_on("apply_state_exit", Exit("freezer_apply_state"), V1, Notices(Freeze), Any),
        program_on("apply_state_entry", Entry("freezer_apply_state"), V1, Notices(Freeze), Any),
        program_on("freeze_exit", Exit("cgroup_freeze"), V2, Notices(Freeze), Any),
        program_on("freeze_entry", Entry("cgroup_freeze"), V2, Notices(Freeze), Any),
        program_on("bprm_committed_creds", Lsm("bprm_committed_creds"), All, Trigger, Enforce),
        program_on("committed_creds_entry", Entry("security_bprm_committed_creds"), All, Trigger, Below),
        program_on("apply_state_claim", Entry("freezer_apply_state"), V1, Trigger, Any),
        program_on("freeze_claim", Entry("cgroup_freeze"), V2, Trigger, Any),
        program_on("freezer_read_entry", Entry("freezer_read"), V1, Trigger, Any),
        program_on("freeze_show_entry", Entry("cgroup_freeze_show"), V2, Trigger, Any),
        program_on("seize_exit", Exit("ptrace_attach"), All, Trigger, Any),
        program_on("move_task_entry", Entry("css_set_move_task"), All, Trigger, Any),
        program_on("detach_entry", Entry("ptrace_disable"), All, Trigger, Any),
        program_on("task_kill", Lsm("task_kill"), All, Refuses(&[Kill]), AboveDetect),
        program_on("ptrace_access_check", Lsm("ptrace_access_check"), All, Refuses(&[Ptrace]), AboveDetect),
        program_on("inode_permission", Lsm("inode_permission"), V2, RefusesMoves, AboveDetect),
        program_on("attach_permissions_exit", Exit("cgroup_attach_permissions"), V2, RefusesMoves, AboveDetect),
        program_on("attach_permissions_entry", Entry("cgroup_attach_permissions"), V2, RefusesMoves, AboveDetect),
        program_on("file_permission", Lsm("file_permission"), V1, Refuses(&[Freeze, Kill, Migrate]), AboveDetect),
        program_on("file_permission_v2", Lsm("file_permission"), OnlyV2, Refuses(&[Freeze, Kill, Migrate]), AboveDetect),
    ]
};

/// The functions and tracepoints that programs are attached to at any level, and the functions that they
/// call, as BTF names them.
pub(super) fn targets() -> BTreeSet<String> {
    Level::ALL
        .into_iter()
        .flat_map(|level| at(level).map(move |program| program.target(level)))
        .chain(
            [ITERATOR]
                .into_iter()
                .chain(kfuncs::NAMES)
                .map(str::to_owned),
        )
        .collect()
}

/// What an iterator over tasks is attached to.
pub(super) const ITERATOR: &str = "bpf_iter_task";

/// Those that are of use at this level.
pub(super) fn at(level: Level) -> impl Iterator<Item = &'static Program> {
    PROGRAMS.iter().filter(move |program| match program.at {
        At::Any => true,
        At::Enforce => level == Level::Enforce,
        At::Below => level < Level::Enforce,
        At::AboveDetect => level > Level::Detect,
    })
}

/// How far each protection of guards in these hierarchies goes with the programs of which
/// `is_there` is true, in a set that was loaded for `level`.
pub(super) fn levels(
    level: Level,
    hierarchies: Hierarchies,
    is_there: impl Fn(&Program) -> bool,
) -> Levels {
    let all = |protection, refusing: bool| {
        at(level)
            .filter(|program| program.is_needed(hierarchies))
            .filter(|program| match program.role {
                Role::Trigger | Role::NoticesMore => false,
                // A guard without proof only detects.
                Role::Proof => refusing,
                Role::Membership => !refusing && protection == Protection::Migrate,
                Role::Notices(what) | Role::NoticesRoot(what) => !refusing && what == protection,
                Role::Refuses(what) => refusing && what.contains(&protection),
                Role::RefusesMoves => refusing && protection == Protection::Migrate,
            })
            .all(&is_there)
    };
    Protection::ALL.map(|protection| match all(protection, false) {
        false => None,
        true if all(protection, true) => Some(level),
        true => Some(Level::Detect),
    })
}

impl Program {
    /// Its attachment point, in words.
    pub(super) fn hook(&self, level: Level) -> String {
        match self.hook {
            Hook::Lsm(hook) if level == Level::Enforce => format!("lsm {hook}"),
            Hook::Lsm(hook) => format!("fmod_ret security_{hook}"),
            Hook::Tracepoint => format!("tracepoint {}", self.name),
            Hook::Entry(function) => format!("fentry {function}"),
            Hook::Exit(function) => format!("fexit {function}"),
        }
    }

    /// The error for a program that the kernel does not call.
    pub(super) fn never_called(&self, level: Level) -> Error {
        Error::NeverCalled {
            program: self.name,
            hook: self.hook(level),
        }
    }

    /// The field or constant of the kernel without which it sees nothing, and which not every kernel
    /// has.
    pub(super) fn needs(&self) -> Option<(&'static str, &'static str)> {
        match (self.hook, self.needed_by) {
            (Hook::Exit("access_remote_vm" | "set_swbp"), _) => Some(MEMORY_OWNER),
            (_, NeededBy::V1) => Some(FREEZER_ID),
            _ => None,
        }
    }

    /// Whether guards have all their levels without it.
    pub(super) fn is_extra(&self) -> bool {
        matches!(self.role, Role::NoticesMore)
    }

    /// Whether it is of use only together with the others of which this is true.
    pub(super) fn refuses_moves(&self) -> bool {
        matches!(self.role, Role::RefusesMoves)
    }

    /// Whether it notices checkpointers.
    pub(super) fn is_trigger(&self) -> bool {
        matches!(self.role, Role::Trigger)
    }

    /// Returns whether a call that the kernel leaves out at this level may have been a violation.
    ///
    /// The tripwires for `ptrace` and memory miss calls when many processes read `/proc/PID/cmdline` or
    /// try to trace a task, as every user can. So where `ptrace` is refused, a miss of the program
    /// that refuses it counts instead of those of its tripwires.
    pub(super) fn may_miss(&self, level: Level) -> bool {
        match self.role {
            Role::Membership | Role::NoticesRoot(_) => true,
            Role::Notices(what) => what != Protection::Ptrace || level == Level::Detect,
            Role::Refuses(what) => what.contains(&Protection::Ptrace),
            // Every user makes the kernel call the function of `Proof`.
            Role::RefusesMoves | Role::Trigger | Role::Proof | Role::NoticesMore => false,
        }
    }

    /// Whether no guard goes without it.
    pub(super) fn is_vital(&self) -> bool {
        matches!(self.role, Role::Membership)
    }

    /// Whether it refuses by what the kernel may not permit.
    pub(super) fn modifies_return(&self, level: Level) -> bool {
        matches!(self.hook, Hook::Lsm(_)) && level < Level::Enforce
    }

    /// How often it is loaded and attached on a preemptible kernel: itself and its copies. The kernel skips a
    /// program while it has interrupted another run of it on the same CPU, but not the copies of that
    /// program. `disables_preemption`: whether the program does that while it decides.
    ///
    /// The numbers are measured (`levels::crowds` of the tests). Each access to any file pays for the copies.
    pub(super) fn copies(&self, disables_preemption: bool) -> usize {
        match disables_preemption {
            true => self.most_copies().min(6),
            false => self.most_copies(),
        }
    }

    /// The same at most. Never lower one of these without a change of the BPF object: the next
    /// version would not find the pins that this one has left.
    fn most_copies(&self) -> usize {
        match self.hook {
            Hook::Lsm("file_permission" | "task_kill") => 12,
            // Each step of each path calls it, and it only compares two numbers.
            Hook::Lsm("inode_permission") => 3,
            // The caller of `ptrace_access_check` holds a spinlock.
            _ => 1,
        }
    }

    /// Where the pin is that keeps it attached.
    pub(super) fn link_pin(&self, dir: &Path) -> PathBuf {
        dir.join(self.name)
    }

    /// Where the pin is that keeps it loaded.
    pub(super) fn program_pin(&self, dir: &Path) -> PathBuf {
        dir.join(format!("program-{}", self.name))
    }

    /// The pins that it and its copies may have: of the program, and of the link. Those of itself come first.
    pub(super) fn pins(
        &self,
        dir: &Path,
    ) -> impl DoubleEndedIterator<Item = (PathBuf, PathBuf)> + ExactSizeIterator {
        let (program, link) = (self.program_pin(dir), self.link_pin(dir));
        (0..self.most_copies()).map(move |copy| match copy {
            0 => (program.clone(), link.clone()),
            _ => (numbered(&program, copy), numbered(&link, copy)),
        })
    }

    /// Whether it and all copies of it that are loaded are attached.
    pub(super) fn is_attached(&self, dir: &Path) -> bool {
        let mut pins = self.pins(dir);
        self.link_pin(dir).exists()
            && pins.all(|(program, link)| link.exists() || !program.exists())
    }

    /// Whether guards with targets in these hierarchies need it.
    pub(super) fn is_needed(&self, hierarchies: Hierarchies) -> bool {
        match (self.role, self.needed_by) {
            (Role::Trigger | Role::NoticesMore, _) => false,
            (_, NeededBy::All) => hierarchies.v1 || hierarchies.v2,
            (_, NeededBy::V1) => hierarchies.v1,
            (_, NeededBy::V2) => hierarchies.v2,
            (_, NeededBy::OnlyV2) => hierarchies.v2 && !hierarchies.v1,
        }
    }

    /// Whether some guards need it where there are these hierarchies.
    pub(super) fn may_be_needed(&self, there: Hierarchies) -> bool {
        match self.needed_by {
            NeededBy::All => true,
            NeededBy::V1 => there.v1,
            NeededBy::V2 | NeededBy::OnlyV2 => there.v2,
        }
    }

    /// Whether it is attached while there is no guard, to notice a checkpointer
    /// and from its first write on everything that is done to it. None of these
    /// is on the way of a read, a write or a path, except those of another process's memory and of
    /// numbers below `/proc/sys`.
    pub(super) fn watches(&self) -> bool {
        matches!(
            self.role,
            Role::Membership
                | Role::Notices(_)
                | Role::NoticesRoot(_)
                | Role::NoticesMore
                | Role::Proof
                | Role::Trigger
        )
    }

    /// What the kernel calls such a program.
    pub(super) fn types(&self, level: Level) -> (bpf_prog_type, bpf_attach_type) {
        match self.hook {
            Hook::Lsm(_) if level == Level::Enforce => (BPF_PROG_TYPE_LSM, BPF_LSM_MAC),
            Hook::Lsm(_) => (BPF_PROG_TYPE_TRACING, BPF_MODIFY_RETURN),
            Hook::Tracepoint => (BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP),
            Hook::Entry(_) => (BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY),
            Hook::Exit(_) => (BPF_PROG_TYPE_TRACING, BPF_TRACE_FEXIT),
        }
    }

    /// Its attachment point, as BTF names it.
    pub(super) fn target(&self, level: Level) -> String {
        match self.hook {
            Hook::Lsm(hook) if level == Level::Enforce => format!("bpf_lsm_{hook}"),
            Hook::Lsm(hook) => format!("security_{hook}"),
            Hook::Tracepoint => format!("btf_trace_{}", self.name),
            Hook::Entry(function) | Hook::Exit(function) => function.to_owned(),
        }
    }
}

fn numbered(pin: &Path, copy: usize) -> PathBuf {
    let mut name = pin.as_os_str().to_owned();
    name.push(format!("-{copy}"));
    name.into()
}
