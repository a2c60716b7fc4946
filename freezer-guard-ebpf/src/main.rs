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
mod cgroup;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod membership;
#[cfg(target_arch = "bpf")]
mod refusal;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{btf_tracepoint, lsm},
        programs::{BtfTracePointContext, LsmContext},
    };

    use crate::{cgroup, membership};

    /// `security_file_permission(file, mask)`: before every read and write of
    /// every file, so the cheapest test comes first.
    #[lsm(hook = "file_permission")]
    fn file_permission(ctx: LsmContext) -> i32 {
        const MAY_WRITE: i32 = 2;
        let (mask, earlier) = (ctx.arg::<i32>(1), ctx.arg::<i32>(2));
        if earlier != 0 {
            return earlier;
        }
        if mask & MAY_WRITE == 0 {
            return 0;
        }
        cgroup::check_write(ctx.arg(0))
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

    /// Never attached: user space runs it (`BPF_PROG_TEST_RUN`) to act on
    /// itself, from inside the kernel and without a pid.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "raw_tracepoint")]
    fn control(ctx: *const [u64; 2]) -> u32 {
        // SAFETY: the context of a raw tracepoint is an array of arguments, and
        // user space passes more than two.
        let [operation, guard] = unsafe { ctx.read() };
        membership::control(operation, guard)
    }

    /// Lists the threads of all holders.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task")]
    fn members(ctx: *const membership::TaskIter) -> i32 {
        membership::list(ctx);
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
