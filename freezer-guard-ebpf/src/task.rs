//! Signals to the tasks of a target, and ptrace.

use freezer_guard_abi::{
    Act, Action, Actor, BY_INTERRUPT, CgroupKey, GuardId, KERNEL_SIGNAL, Object, Protection, Stage,
    protects_from,
};

use crate::{
    audit::{self, Access, EBUSY},
    entry::Entry,
    kernel::{self, Pointer, offset, probe},
    lifetime,
    lookup::{self, Found, Origin, is_traced_by_holder},
    membership, preemption,
};

/// The signal that a terminal's end sends.
const SIGHUP: i32 = 1;
/// The signals that change a task whatever it wants.
const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// `SEND_SIG_NOINFO` of `include/linux/sched/signal.h`: from user space, without details.
const SEND_SIG_NOINFO: u64 = 0;
/// `SEND_SIG_PRIV`: from the kernel itself.
const SEND_SIG_PRIV: u64 = 1;

/// Something that the current task does to another.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    act: u32,
    protection: Protection,
    detail: u32,
    victim: Pointer,
    origin: Origin,
}

/// A guard that objects to it.
enum Objector {
    Guard(GuardId),
    Nobody,
    TooDeep,
}

// What follows are global functions, which the verifier walks once each (see `lookup`), and
// the two ways to put an attempt into the numbers that they take.

impl Attempt {
    #[inline(always)]
    pub(crate) fn new(act: Act, detail: u32, victim: Pointer) -> Self {
        Self {
            act: act as u32,
            protection: act.protection(detail),
            detail,
            victim,
            origin: Origin::Task,
        }
    }

    /// The answer of a hook.
    #[inline(always)]
    fn check(&self) -> i32 {
        match check_attempt(kernel::number(self.victim), self.packed()) {
            0 => 0,
            _ => -EBUSY,
        }
    }

    /// Counts what has been done.
    #[inline(always)]
    pub(crate) fn done(&self) {
        if lifetime::is_any_held() {
            count_attempt(kernel::number(self.victim), self.packed());
        }
    }

    #[inline(always)]
    fn packed(&self) -> u64 {
        u64::from(self.detail) << 32
            | (self.origin as u64) << 24
            | u64::from(self.act) << 8
            | self.protection as u64
    }

    #[inline(always)]
    fn unpacked(victim: u64, packed: u64) -> Self {
        Self {
            act: packed as u32 >> 8 & 0xffff,
            protection: Protection::numbered(packed as u32 & 0xff),
            detail: (packed >> 32) as u32,
            victim: victim as Pointer,
            origin: Origin::numbered(packed >> 24 & 0xff),
        }
    }
}

/// Whether the attempt is refused: 0 or 1. (The verifier wants to see each answer of a hook.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_attempt(victim: u64, packed: u64) -> u64 {
    let attempt = Attempt::unpacked(victim, packed);
    match attempt.objector(Stage::Asked) {
        Objector::Guard(id) => audit::refused(id, &attempt.access()),
        Objector::Nobody => return 0,
        Objector::TooDeep => return lookup::too_deep_for_current().into(),
    }
    1
}

/// [`Attempt::done`]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_attempt(victim: u64, packed: u64) -> u64 {
    let attempt = Attempt::unpacked(victim, packed);
    if let Objector::Guard(id) = attempt.objector(Stage::Done) {
        audit::disturbed(id, &attempt.access());
    }
    0
}

/// Whether the guard refuses the attempt: 0 or 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_attempt_refused(id: GuardId, victim: u64, packed: u64) -> u64 {
    let attempt = Attempt::unpacked(victim, packed);
    attempt
        .is_objected(id, lookup::actor_asking(id), Stage::Asked)
        .into()
}

/// Whether the guard counts the attempt: 0 or 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_attempt_counted(id: GuardId, victim: u64, packed: u64) -> u64 {
    let attempt = Attempt::unpacked(victim, packed);
    let actor = lookup::actor_of(id, attempt.origin);
    attempt.is_objected(id, actor, Stage::Done).into()
}

impl Attempt {
    /// The guard that does not want it. On a hybrid host there may be one in
    /// each hierarchy.
    #[inline(always)]
    fn objector(&self, stage: Stage) -> Objector {
        if let Some(cgroup) = lookup::v2_of(self.victim) {
            match self.objector_in(cgroup, stage) {
                Objector::Nobody => {}
                found => return found,
            }
        }
        if let Some(cgroup) = lookup::v1_of(self.victim) {
            match self.objector_in(cgroup, stage) {
                Objector::Nobody => {}
                found => return found,
            }
        }
        match lookup::seized_by(kernel::number(self.victim)) {
            lookup::NOBODY => Objector::Nobody,
            id if self.objects(id, stage) => Objector::Guard(id),
            _ => Objector::Nobody,
        }
    }

    /// Whether the guard does not want it.
    #[inline(always)]
    fn objects(&self, id: GuardId, stage: Stage) -> bool {
        let (victim, packed) = (self.victim as u64, self.packed());
        match stage {
            Stage::Asked => is_attempt_refused(id, victim, packed) != 0,
            Stage::Done => is_attempt_counted(id, victim, packed) != 0,
        }
    }

    #[inline(always)]
    fn objector_in(&self, cgroup: Pointer, stage: Stage) -> Objector {
        match lookup::of_cgroup(cgroup) {
            Found::Guard(id) if self.objects(id, stage) => Objector::Guard(id),
            Found::TooDeep => Objector::TooDeep,
            Found::Guard(_) | Found::Nobody => Objector::Nobody,
        }
    }

    #[inline(always)]
    fn is_objected(&self, id: GuardId, actor: Actor, stage: Stage) -> bool {
        let Some(entry) = Entry::of(id) else {
            return false;
        };
        let object = Object::Task {
            traced: is_traced_by_holder(self.victim as u64, id) != 0,
            member: membership::is_member(kernel::task(self.victim)),
        };
        let action = Action {
            protection: self.protection,
            object,
            stage,
        };
        protects_from(entry.guard(), actor, action)
    }

    #[inline(always)]
    fn access(&self) -> Access {
        let cgroup = lookup::v2_of(self.victim).and_then(lookup::key);
        let cgroup = cgroup.unwrap_or(CgroupKey::new(0, 0));
        let mut access = Access::numbered(self.act, self.protection as u32, cgroup);
        access.detail = self.detail;
        access.victim = kernel::tgid(self.victim);
        access
    }
}

#[inline(always)]
fn is_guarded_signal(signal: i32) -> bool {
    matches!(signal, SIGKILL | SIGSTOP | SIGCONT)
}

/// Whether the signal ends or stops the task, for it neither handles nor ignores it.
#[inline(always)]
fn is_deadly(victim: Pointer, signal: i32) -> bool {
    /// `_NSIG` of `linux/signal.h`.
    const SIGNALS: i32 = 64;
    /// What is ignored by default, besides SIGCONT (`SIG_KERNEL_IGNORE_MASK`):
    /// SIGCHLD, SIGURG, SIGWINCH.
    const HARMLESS: [i32; 3] = [17, 23, 28];
    /// The size of `struct k_sigaction`, which begins with the handler.
    const ACTION: usize = 32;
    if !(1..=SIGNALS).contains(&signal) || HARMLESS.contains(&signal) {
        return false;
    }
    let handler = offset!(sighand_struct_action) + (signal as usize - 1) * ACTION;
    probe::<Pointer>(victim, offset!(task_struct_sighand))
        .and_then(|sighand| probe::<usize>(sighand, handler))
        == Some(0)
}

/// The answer of `task_kill` for a signal from user space.
///
/// A task that is exiting sends the one that its children have asked for
/// (`forget_original_parent`). It would never be sent again.
#[inline(always)]
pub(crate) fn check_signal(victim: Pointer, signal: i32) -> i32 {
    if kernel::is_exiting(kernel::current()) {
        return 0;
    }
    if !is_guarded_signal(signal) && !is_deadly(victim, signal) {
        return 0;
    }
    preemption::disabled(|| Attempt::new(Act::Signal, signal as u32, victim).check())
}

/// The tracepoint `signal_generate`: a signal is on its way, whoever sent it.
///
/// Other signals wait until the task runs, and are part of the checkpoint. But
/// one that nobody handles ends a task at once, even when v2 has frozen it
/// (`complete_signal`).
#[inline(always)]
pub(crate) fn signalled(signal: i32, info: Pointer, victim: Pointer, result: i32) {
    /// `TRACE_SIGNAL_IGNORED`: for SIGCONT after it has woken the task.
    const IGNORED: i32 = 1;
    /// `TRACE_SIGNAL_DELIVERED`, and `TRACE_SIGNAL_LOSE_INFO`: so too, but for
    /// who sent it.
    const DELIVERED: i32 = 0;
    const LOSE_INFO: i32 = 4;
    let effective = match result {
        DELIVERED | LOSE_INFO => is_guarded_signal(signal) || kernel::is_group_exiting(victim),
        IGNORED => signal == SIGCONT,
        _ => false,
    };
    if !effective {
        return;
    }
    let mut attempt = Attempt::new(Act::Signal, signal as u32, victim);
    // A number, since LLVM computes with a pointer that is null, and the verifier of 6.1 refuses that.
    if is_from_kernel(kernel::number(info)) {
        attempt.origin = origin(victim, signal);
        attempt.detail |= match attempt.origin {
            Origin::Interrupt => KERNEL_SIGNAL | BY_INTERRUPT,
            Origin::Task | Origin::Kernel => KERNEL_SIGNAL,
        };
    }
    attempt.done();
}

#[inline(always)]
fn is_from_kernel(info: u64) -> bool {
    /// `SI_TIMER` of `asm-generic/siginfo.h`: a timer that `timer_create` made.
    const SI_TIMER: i32 = -2;
    match info {
        SEND_SIG_NOINFO => false,
        SEND_SIG_PRIV => true,
        // `SI_FROMKERNEL`
        info => probe::<i32>(info as Pointer, offset!(kernel_siginfo_si_code))
            .is_some_and(|code| code > 0 || code == SI_TIMER),
    }
}

/// Returns whether the kernel sends a [`KERNEL_SIGNAL`] by itself, while any task runs: memory has
/// run out in that, or an interrupt has found it. The signals that a task brings upon its own
/// process, such as SIGSEGV, those that its exit causes, and the SIGSTOP of its `PTRACE_ATTACH`
/// are its own.
#[inline(always)]
fn origin(victim: Pointer, signal: i32) -> Origin {
    let current = kernel::current();
    match signal {
        SIGSTOP => Origin::Task,
        SIGKILL | SIGHUP | SIGCONT if kernel::is_exiting(current) => Origin::Task,
        SIGKILL => Origin::Kernel,
        _ if kernel::tgid(current) == kernel::tgid(victim) => Origin::Task,
        _ => Origin::Interrupt,
    }
}

/// `PTRACE_MODE_ATTACH`; reading `/proc/PID/maps` and the like ask for less.
const MODE_ATTACH: u32 = 2;

/// The answer of `ptrace_access_check`.
#[inline(always)]
pub(crate) fn check_trace(victim: Pointer, mode: u32) -> i32 {
    if mode & MODE_ATTACH == 0 {
        return 0;
    }
    let answer = Attempt::new(Act::Trace, 0, victim).check();
    if answer == 0 {
        // A superior may: nothing else would show what it reads and writes.
        Attempt::new(Act::Permit, 0, victim).done();
    }
    answer
}

/// The return of `security_ptrace_access_check`.
#[inline(always)]
pub(crate) fn was_permitted(victim: Pointer, mode: u32, result: i32) {
    if mode & MODE_ATTACH == 0 || result != 0 {
        return;
    }
    Attempt::new(Act::Permit, 0, victim).done();
}

/// The return of `ptrace_attach`: one that was asking before the guard began.
#[inline(always)]
pub(crate) fn attached(victim: Pointer, result: i32) {
    if result != 0 {
        return;
    }
    Attempt::new(Act::Trace, 0, victim).done();
}
