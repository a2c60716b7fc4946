//! The programs and the hooks they are attached to: the one table of both.

use std::path::{Path, PathBuf};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, Lsm, ProgramError, links::FdLink},
};

use super::{Error, pins::program};

/// What a program is attached to.
#[derive(Debug, Clone, Copy)]
enum Hook {
    /// The LSM hook with the program's own name.
    Lsm,
    /// The tracepoint with the program's own name.
    Tracepoint,
    /// The beginning of a kernel function.
    Entry(&'static str),
    /// The return of a kernel function.
    Exit(&'static str),
}

/// Which guards need a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NeededBy {
    All,
    /// Those with a target on v1.
    V1,
    /// Those with a target on v2.
    V2,
}

/// Which kinds of target the guards in force have.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hierarchies {
    /// Some are on v1.
    pub v1: bool,
    /// Some are on v2.
    pub v2: bool,
}

/// A program that is attached while guards need it.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    hook: Hook,
    needed_by: NeededBy,
}

const fn program_on(name: &'static str, hook: Hook, needed_by: NeededBy) -> Program {
    Program {
        name,
        hook,
        needed_by,
    }
}

/// In the order in which they are attached: membership first, so that whoever
/// can be a holder is counted from the start; then what counts disturbances,
/// then what refuses.
pub(super) const PROGRAMS: [Program; 18] = {
    use Hook::{Entry, Exit, Lsm, Tracepoint};
    use NeededBy::{All, V1, V2};
    [
        program_on("sched_process_exit", Tracepoint, All),
        program_on("task_free", Lsm, All),
        program_on("task_alloc", Lsm, All),
        // The return before the entry: what it finds was left by an entry.
        program_on("attach_task_exit", Exit("cgroup_attach_task"), All),
        program_on("attach_task_entry", Entry("cgroup_attach_task"), All),
        program_on("signal_generate", Tracepoint, All),
        program_on("ptrace_attach_exit", Exit("ptrace_attach"), All),
        program_on("access_remote_vm_exit", Exit("__access_remote_vm"), All),
        program_on("apply_state_exit", Exit("freezer_apply_state"), V1),
        program_on("apply_state_entry", Entry("freezer_apply_state"), V1),
        program_on("freeze_exit", Exit("cgroup_freeze"), V2),
        program_on("freeze_entry", Entry("cgroup_freeze"), V2),
        program_on("task_kill", Lsm, All),
        program_on("ptrace_access_check", Lsm, All),
        program_on("inode_permission", Lsm, V2),
        program_on(
            "attach_permissions_exit",
            Exit("cgroup_attach_permissions"),
            V2,
        ),
        program_on(
            "attach_permissions_entry",
            Entry("cgroup_attach_permissions"),
            V2,
        ),
        program_on("file_permission", Lsm, All),
    ]
};

impl Program {
    /// Where the pin is that keeps it attached.
    pub(super) fn link_pin(&self, dir: &Path) -> PathBuf {
        dir.join(self.name)
    }

    /// Where the pin is that keeps it loaded.
    fn program_pin(&self, dir: &Path) -> PathBuf {
        dir.join(format!("program-{}", self.name))
    }

    pub(super) fn is_needed(&self, hierarchies: Hierarchies) -> bool {
        match self.needed_by {
            NeededBy::All => true,
            NeededBy::V1 => hierarchies.v1,
            NeededBy::V2 => hierarchies.v2,
        }
    }

    /// Loads it and pins it.
    pub(super) fn load(&self, ebpf: &mut Ebpf, btf: &Btf, dir: &Path) -> Result<(), Error> {
        let pin = self.program_pin(dir);
        macro_rules! load {
            ($kind:ty, $hook:expr) => {{
                let program: &mut $kind = program(ebpf, self.name)?;
                program.load($hook, btf).map_err(Error::load(self.name))?;
                program.pin(&pin)
            }};
        }
        match self.hook {
            Hook::Lsm => load!(Lsm, self.name),
            Hook::Tracepoint => load!(BtfTracePoint, self.name),
            Hook::Entry(function) => load!(FEntry, function),
            Hook::Exit(function) => load!(FExit, function),
        }
        .map_err(Error::failed(format!("pin {}", pin.display())))
    }

    /// Attaches it, from its pin, and pins the link.
    pub(super) fn attach(&self, dir: &Path) -> Result<(), Error> {
        let (pin, path) = (self.program_pin(dir), self.link_pin(dir));
        macro_rules! attach {
            ($kind:ty) => {{
                let attached = || -> Result<FdLink, ProgramError> {
                    let mut program = <$kind>::from_pin(&pin)?;
                    let id = program.attach()?;
                    Ok(program.take_link(id)?.into())
                };
                attached()
            }};
        }
        match self.hook {
            Hook::Lsm => attach!(Lsm),
            Hook::Tracepoint => attach!(BtfTracePoint),
            Hook::Entry(_) => attach!(FEntry),
            Hook::Exit(_) => attach!(FExit),
        }
        .map_err(Error::failed(format!(
            "attach the BPF program {}",
            self.name
        )))?
        .pin(&path)
        .map(drop)
        .map_err(Error::failed(format!("pin {}", path.display())))
    }
}
