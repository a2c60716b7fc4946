//! The BPF programs: the hook of each, its task there, and the reason for that hook.
//!
//! A guard is an entry of the map `GUARDS`. It is marked on its targets (`TARGETS`) and on
//! every cgroup above them (`ANCESTORS`), and its holder is a set of threads (`MEMBERS`).
//! Every program here asks the same question of what the current task does: which guard
//! covers the object (`lookup`), how does the actor stand to it (`authority`,
//! `membership`), and what does the one decision say (`protects_from` of `freezer-guard-abi`)?
//!
//! **Refusing** (BPF LSM, or `fmod_ret` of the same functions where `lsm=` lacks bpf). The
//! answer is EBUSY.
//!
//! | hook | refuses | why this hook |
//! |---|---|---|
//! | `file_permission` | writes to `freezer.state`, `cgroup.freeze`, `cgroup.kill`, and on v1 `tasks`, `cgroup.procs` | every write asks it, at each write and not when the file is opened |
//! | `file_permission` | the files of an image, to the holder of a violated automatic guard | without them CRIU fails, and lets its tasks run on |
//! | `inode_permission`, between `cgroup_attach_permissions` entry and exit | migration on v2 | `cgroup_attach_permissions` has source and destination at hand, under `cgroup_mutex`; no LSM hook has |
//! | `task_kill` | SIGKILL, SIGSTOP, SIGCONT, and every signal that would end the task | the one check of all signals from user space |
//! | `ptrace_access_check` | tracing; memory by `/proc/PID/mem` and `process_vm_readv` | all of them ask it |
//! | `task_alloc` | a fork of a holder for whose child there is no room | it can still fail; the child would be an outsider |
//!
//! **Tripwires** (`fentry`, `fexit`, a BTF tracepoint) count what is done, however it came
//! about: a write that was checked before the guard began, the kernel itself, a superior.
//!
//! | hook | counts | why this hook |
//! |---|---|---|
//! | `freezer_apply_state`, `cgroup_freeze` | each change of a freezer | under the freezer's own mutex: nothing slips through, and what is counted has been done |
//! | `css_set_move_task` | each task that comes, goes or moves; it also makes members of children and takes out the dead | under `css_set_lock`: every fork, every exit and every migration passes it |
//! | `signal_generate` | each signal that takes effect | with interrupts off, for every sender |
//! | `ptrace_attach`, `security_ptrace_access_check` | tracing that was permitted | the permission may be older than the guard |
//! | `access_remote_vm` | each page of a write to `/proc/PID/mem` | a write lands page by page, and may fail after the first |
//! | `process_vm_rw` | a write by `process_vm_writev` that was permitted before (Linux 6.6) | no other function has the task at hand |
//! | `set_swbp` | breakpoints of uprobes | they are written into every process that maps the file, and no LSM hook sees it |
//! | `clear_refs_write` | dirty bits that are cleared | no LSM hook sees it |
//! | `proc_dointvec` | function tracing that is switched off, after which no program is called | the switch's own function cannot be traced |
//!
//! **Automatic guards**: `bprm_committed_creds` notices that a process becomes `criu`, and
//! programs on `freezer_apply_state` and `cgroup_freeze` begin its guard at the first write.
//! `freezer_read` and `cgroup_freeze_show` begin it at the first read, if an engine has paused the
//! container, `ptrace_attach` at the first seize, if the checkpointer uses no freezer, and
//! `css_set_move_task` with the first task that the checkpointer restores. `ptrace_disable`, which
//! every detach begins with, ends it.
//!
//! **Operations** that user space asks for: `control` (`BPF_PROG_TEST_RUN`), and the
//! iterators `members` and `enrol`.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic operations, see `atomic`")]
#![expect(unsafe_code, reason = "programs read kernel memory")]

mod atomic;
mod audit;
mod authority;
mod automatic;
mod candidate;
mod cgroup;
mod each;
mod entry;
mod freezer;
mod image;
mod kernel;
mod lifetime;
mod log;
mod lookup;
mod maps;
mod marks;
mod membership;
mod memory;
mod migration;
mod operations;
mod pid;
mod preemption;
mod proof;
mod restore;
mod seize;
mod spoiled;
mod task;
mod writes;

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, fexit, lsm},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, LsmContext},
};
use freezer_guard_abi::control::MORE;

/// `security_file_permission(file, mask)`: before every read and write of
/// every file, so the cheapest test comes first.
#[lsm(hook = "file_permission")]
fn file_permission(ctx: LsmContext) -> i32 {
    permit::<true>(&ctx)
}

/// The same where no guarded task is in a cgroup of v1.
#[lsm(hook = "file_permission")]
fn file_permission_v2(ctx: LsmContext) -> i32 {
    permit::<false>(&ctx)
}

#[inline(always)]
fn permit<const WITH_V1: bool>(ctx: &LsmContext) -> i32 {
    const MAY_WRITE: i32 = 2;
    let (mask, earlier) = (ctx.arg::<i32>(1), ctx.arg::<i32>(2));
    if mask & MAY_WRITE == 0 || earlier != 0 {
        return earlier;
    }
    let file = ctx.arg(0);
    match cgroup::is_in_cgroup(file) {
        true => preemption::disabled(|| cgroup::check_write::<WITH_V1>(file)),
        false => image::check_write(file),
    }
}

/// `security_task_alloc(task, clone_flags)`: a child of a member is a member.
#[lsm(hook = "task_alloc")]
fn task_alloc(ctx: LsmContext) -> i32 {
    let earlier = ctx.arg::<i32>(2);
    if earlier != 0 {
        return earlier;
    }
    membership::inherit(kernel::task(ctx.arg(0)))
}

/// `security_task_free(task)`: a fork that has failed after `task_alloc`. (Every other
/// task has left before, see `move_task_exit`.)
#[lsm(hook = "task_free")]
fn task_free(ctx: LsmContext) -> i32 {
    membership::leave(ctx.arg(0));
    0
}

/// `security_task_kill(task, info, signal, cred)`: a signal from user space.
#[lsm(hook = "task_kill")]
fn task_kill(ctx: LsmContext) -> i32 {
    let earlier = ctx.arg::<i32>(4);
    if earlier != 0 {
        return earlier;
    }
    task::check_signal(ctx.arg(0), ctx.arg(2))
}

/// `security_ptrace_access_check(child, mode)`
#[lsm(hook = "ptrace_access_check")]
fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let earlier = ctx.arg::<i32>(2);
    if earlier != 0 {
        return earlier;
    }
    task::check_trace(ctx.arg(0), ctx.arg(1))
}

/// `security_inode_permission(inode, mask)`: on every step of a path, so it
/// only looks whether this thread was flagged just before.
#[lsm(hook = "inode_permission")]
fn inode_permission(ctx: LsmContext) -> i32 {
    let earlier = ctx.arg::<i32>(2);
    match migration::is_any_refused() && earlier == 0 {
        true => migration::permission(),
        false => earlier,
    }
}

#[fentry(function = "cgroup_attach_permissions")]
fn attach_permissions_entry(ctx: FEntryContext) -> i32 {
    migration::before_permission(ctx.arg(0), ctx.arg(1));
    0
}

#[fexit(function = "cgroup_attach_permissions")]
fn attach_permissions_exit(_ctx: FExitContext) -> i32 {
    migration::after_permission();
    0
}

/// `css_set_move_task(task, from_cset, to_cset, use_mg_tasks)`, under `css_set_lock`: the
/// one place that each fork, each end and each move of a thread passes.
#[fexit(function = "css_set_move_task")]
fn move_task_exit(ctx: FExitContext) -> i32 {
    migration::after_move(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// `freezer_apply_state(freezer, freeze, state)`, for checkpointers that nobody has guarded.
#[fentry(function = "freezer_apply_state")]
fn apply_state_claim(ctx: FEntryContext) -> i32 {
    automatic::writes_v1(ctx.arg(0), ctx.arg::<u8>(1) != 0, ctx.arg(2));
    0
}

/// `css_set_move_task(task, from_cset, to_cset, use_mg_tasks)`, for checkpointers that restore.
#[fentry(function = "css_set_move_task")]
fn move_task_entry(ctx: FEntryContext) -> i32 {
    restore::moves(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[fentry(function = "freezer_apply_state")]
fn apply_state_entry(ctx: FEntryContext) -> i32 {
    freezer::before_v1(ctx.arg(0), ctx.arg::<u8>(1) != 0, ctx.arg(2));
    0
}

#[fexit(function = "freezer_apply_state")]
fn apply_state_exit(ctx: FExitContext) -> i32 {
    freezer::after_v1(ctx.arg(0), ctx.arg::<u8>(1) != 0, ctx.arg(2));
    0
}

/// `cgroup_freeze(cgrp, freeze)`, for checkpointers that nobody has guarded.
#[fentry(function = "cgroup_freeze")]
fn freeze_claim(ctx: FEntryContext) -> i32 {
    automatic::writes_v2(ctx.arg(0), ctx.arg::<u8>(1) != 0);
    0
}

#[fentry(function = "cgroup_freeze")]
fn freeze_entry(ctx: FEntryContext) -> i32 {
    freezer::before_v2(ctx.arg(0), ctx.arg::<u8>(1) != 0);
    0
}

#[fexit(function = "cgroup_freeze")]
fn freeze_exit(ctx: FExitContext) -> i32 {
    freezer::after_v2(ctx.arg(0), ctx.arg::<u8>(1) != 0);
    0
}

/// `freezer_read(seq, v)`: of `freezer.state`.
#[fentry(function = "freezer_read")]
fn freezer_read_entry(ctx: FEntryContext) -> i32 {
    automatic::reads_v1(ctx.arg(0));
    0
}

/// `cgroup_freeze_show(seq, v)`: of `cgroup.freeze`.
#[fentry(function = "cgroup_freeze_show")]
fn freeze_show_entry(ctx: FEntryContext) -> i32 {
    automatic::reads_v2(ctx.arg(0));
    0
}

/// `trace_signal_generate(signal, info, task, group, result)`, with
/// interrupts off: no event is missed for another one.
#[btf_tracepoint(function = "signal_generate")]
fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    task::signalled(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(4));
    0
}

#[fexit(function = "ptrace_attach")]
fn ptrace_attach_exit(ctx: FExitContext) -> i32 {
    task::attached(ctx.arg(0), ctx.arg(4));
    0
}

/// The same function, for checkpointers that nobody has guarded.
#[fexit(function = "ptrace_attach")]
fn seize_exit(ctx: FExitContext) -> i32 {
    if ctx.arg::<i32>(4) == 0 {
        seize::seized(ctx.arg(0));
    }
    0
}

/// `ptrace_disable(child)`, which every detach begins with.
#[fentry(function = "ptrace_disable")]
fn detach_entry(ctx: FEntryContext) -> i32 {
    seize::detaches(ctx.arg(0));
    0
}

/// `access_remote_vm(mm, addr, buf, len, gup_flags)`: a part of a read or a write of
/// `/proc/PID/mem`, of at most a page.
#[fexit(function = "access_remote_vm")]
fn remote_vm_exit(ctx: FExitContext) -> i32 {
    memory::accessed(ctx.arg(0), ctx.arg(4), ctx.arg(5));
    0
}

/// `process_vm_rw(pid, lvec, liovcnt, rvec, riovcnt, flags, vm_write)`
#[fexit(function = "process_vm_rw")]
fn process_vm_exit(ctx: FExitContext) -> i32 {
    memory::copied(ctx.arg(0), ctx.arg(6), ctx.arg(7));
    0
}

/// `set_swbp(auprobe, mm or vma, vaddr)`: a breakpoint of a uprobe is set.
#[fexit(function = "set_swbp")]
fn set_swbp_exit(ctx: FExitContext) -> i32 {
    memory::probed(ctx.arg(1), ctx.arg(3));
    0
}

/// `clear_refs_write(file, buf, count, ppos)`, of `/proc/PID/clear_refs`
#[fexit(function = "clear_refs_write")]
fn clear_refs_exit(ctx: FExitContext) -> i32 {
    memory::cleared_refs(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(4));
    0
}

/// `proc_dointvec(table, write, buffer, lenp, ppos)`: a read or write of a number below `/proc/sys`.
#[fexit(function = "proc_dointvec")]
fn number_set_exit(ctx: FExitContext) -> i32 {
    proof::number_set(ctx.arg(0), ctx.arg(1), ctx.arg(5));
    0
}

// Below the level `enforce` this stands in for `ptrace_access_check`.

#[fexit(function = "security_ptrace_access_check")]
fn ptrace_access_exit(ctx: FExitContext) -> i32 {
    task::was_permitted(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// `security_bprm_committed_creds(bprm)`: the process is another program now.
#[lsm(hook = "bprm_committed_creds")]
fn bprm_committed_creds(ctx: LsmContext) -> i32 {
    candidate::executed(ctx.arg(0));
    0
}

/// The same below the level `enforce`.
#[fentry(function = "security_bprm_committed_creds")]
fn committed_creds_entry(ctx: FEntryContext) -> i32 {
    candidate::executed(ctx.arg(0));
    0
}

/// Never attached: user space runs it (`BPF_PROG_TEST_RUN`) to act on
/// itself, from inside the kernel and without a pid.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
fn control(ctx: *const u64) -> u32 {
    // SAFETY: the context of a raw tracepoint is an array of arguments, and
    // user space passes as many. One word at a time, as the verifier wants.
    let argument = |number| unsafe { ctx.add(number).read_volatile() };
    let mut more = [0; MORE];
    for (number, more) in more.iter_mut().enumerate() {
        *more = argument(2 + number);
    }
    operations::control(argument(0), argument(1), more)
}

/// Lists the threads of all holders.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn members(ctx: *const membership::TaskIter) -> i32 {
    membership::list(ctx);
    0
}

/// Makes holders of those who run already.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn enrol(ctx: *const membership::TaskIter) -> i32 {
    operations::enrol(ctx);
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
