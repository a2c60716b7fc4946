//! The programs' entry points. One file per concern beside it.
//!
//! For any other target than BPF this is an empty program, so that the whole
//! workspace can be checked at once; `cargo xtask ebpf` checks the real one.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "xadd, see `atomic`")
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "programs read kernel memory")
)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod automatic;
#[cfg(target_arch = "bpf")]
mod cgroup;
#[cfg(target_arch = "bpf")]
mod covering;
#[cfg(target_arch = "bpf")]
mod freezer;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod membership;
#[cfg(target_arch = "bpf")]
mod migration;
#[cfg(target_arch = "bpf")]
mod pid;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod telling;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{btf_tracepoint, fentry, fexit, lsm},
        programs::{BtfTracePointContext, FEntryContext, FExitContext, LsmContext},
    };
    use freezer_guard_ebpf::Protection;

    use crate::{automatic, cgroup, freezer, kernel, membership, migration, task};

    /// `security_file_permission(file, mask)`: before every read and write of
    /// every file, so the cheapest test comes first.
    #[lsm(hook = "file_permission")]
    fn file_permission(ctx: LsmContext) -> i32 {
        const MAY_WRITE: i32 = 2;
        let (mask, earlier) = (ctx.arg::<i32>(1), ctx.arg::<i32>(2));
        if mask & MAY_WRITE == 0 || earlier != 0 {
            return earlier;
        }
        let file = ctx.arg(0);
        match cgroup::is_in_cgroup(file) {
            true => cgroup::check_write(file),
            false => 0,
        }
    }

    /// `security_task_alloc(task, clone_flags)`: a child of a member is a member.
    #[lsm(hook = "task_alloc")]
    fn task_alloc(ctx: LsmContext) -> i32 {
        let earlier = ctx.arg::<i32>(2);
        if earlier != 0 {
            return earlier;
        }
        membership::inherit(ctx.arg(0))
    }

    /// `security_task_free(task)`: the backstop, when nobody refers to the task.
    #[lsm(hook = "task_free")]
    fn task_free(ctx: LsmContext) -> i32 {
        membership::leave(ctx.arg(0));
        0
    }

    /// The prompt end of a thread. It may be missed on preemptible kernels
    /// (FACTS: 7.2): `task_free` sees every one.
    #[btf_tracepoint(function = "sched_process_exit")]
    fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
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

    #[fentry(function = "cgroup_attach_task")]
    fn attach_task_entry(ctx: FEntryContext) -> i32 {
        migration::before_attach(ctx.arg(0), ctx.arg(1));
        0
    }

    /// What a function returned stands behind its arguments.
    #[fexit(function = "cgroup_attach_task")]
    fn attach_task_exit(ctx: FExitContext) -> i32 {
        let result = ctx.arg(3);
        migration::after_attach(result);
        if result == 0 {
            automatic::moved(ctx.arg(1));
        }
        0
    }

    /// `css_set_move_task(task, from_cset, to_cset, use_mg_tasks)`, under
    /// `css_set_lock`: the one place that a clone into a cgroup passes.
    #[fexit(function = "css_set_move_task")]
    fn move_task_exit(ctx: FExitContext) -> i32 {
        migration::after_fork(ctx.arg(0), ctx.arg(1), ctx.arg(2));
        0
    }

    #[fentry(function = "freezer_apply_state")]
    fn apply_state_entry(ctx: FEntryContext) -> i32 {
        automatic::writes_v1(ctx.arg(0), ctx.arg(2));
        freezer::before_v1(ctx.arg(0), ctx.arg::<u8>(1) != 0, ctx.arg(2));
        0
    }

    #[fexit(function = "freezer_apply_state")]
    fn apply_state_exit(ctx: FExitContext) -> i32 {
        freezer::after_v1(ctx.arg(0), ctx.arg::<u8>(1) != 0, ctx.arg(2));
        0
    }

    #[fentry(function = "cgroup_freeze")]
    fn freeze_entry(ctx: FEntryContext) -> i32 {
        automatic::claim(ctx.arg(0));
        freezer::before_v2(ctx.arg(0), ctx.arg::<u8>(1) != 0);
        0
    }

    #[fexit(function = "cgroup_freeze")]
    fn freeze_exit(ctx: FExitContext) -> i32 {
        freezer::after_v2(ctx.arg(0), ctx.arg::<u8>(1) != 0);
        0
    }

    /// `trace_signal_generate(signal, info, task, group, result)`, with
    /// interrupts off: no event is missed for another one.
    #[btf_tracepoint(function = "signal_generate")]
    fn signal_generate(ctx: BtfTracePointContext) -> i32 {
        let info: *const core::ffi::c_void = ctx.arg(1);
        task::signalled(ctx.arg(0), info as usize, ctx.arg(2), ctx.arg(4));
        0
    }

    #[fexit(function = "ptrace_attach")]
    fn ptrace_attach_exit(ctx: FExitContext) -> i32 {
        task::attached(ctx.arg(0), ctx.arg(4));
        0
    }

    /// `mem_write(file, buffer, count, position)`, of `/proc/PID/mem`
    #[fexit(function = "mem_write")]
    fn mem_write_exit(ctx: FExitContext) -> i32 {
        task::wrote_memory(ctx.arg(0), ctx.arg(4));
        0
    }

    // Below the level `enforce` these stand in for `task_alloc`, `task_free` and
    // `ptrace_access_check`.

    /// `attach_pid(task, type)`: with interrupts off, so that no event is missed;
    /// the child has not run yet, and nothing can make the fork fail any more.
    #[fentry(function = "attach_pid")]
    fn attach_pid_entry(ctx: FEntryContext) -> i32 {
        /// `PIDTYPE_PID`: once for each thread.
        const THREAD: u32 = 0;
        if ctx.arg::<u32>(1) == THREAD {
            // A fork that cannot be enrolled cannot be made to fail here: the
            // child is an outsider then, and is refused.
            let _ = membership::inherit(ctx.arg(0));
        }
        0
    }

    /// `posix_cpu_timers_exit(task)`, on the way of `release_task`: with
    /// interrupts off, so that no event is missed. It is on the way of `execve` too.
    #[fentry(function = "posix_cpu_timers_exit")]
    fn timers_exit_entry(ctx: FEntryContext) -> i32 {
        if kernel::is_exiting(ctx.arg(0)) {
            membership::leave(ctx.arg(0));
        }
        0
    }

    #[fexit(function = "security_ptrace_access_check")]
    fn ptrace_access_exit(ctx: FExitContext) -> i32 {
        task::was_permitted(ctx.arg(0), ctx.arg(1), ctx.arg(2));
        0
    }

    /// `security_bprm_committed_creds(bprm)`: the process is another program now.
    #[lsm(hook = "bprm_committed_creds")]
    fn bprm_committed_creds(ctx: LsmContext) -> i32 {
        automatic::executed(ctx.arg(0));
        0
    }

    /// The same below the level `enforce`.
    #[fentry(function = "security_bprm_committed_creds")]
    fn committed_creds_entry(ctx: FEntryContext) -> i32 {
        automatic::executed(ctx.arg(0));
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
        let mut more = [0; Protection::COUNT];
        for (number, more) in more.iter_mut().enumerate() {
            *more = argument(2 + number);
        }
        membership::control(argument(0), argument(1), more)
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
        membership::enrol(ctx);
        0
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
