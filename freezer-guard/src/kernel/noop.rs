//! Programs that return at once, on our hooks. `freezer-guard-bench` measures the least cost of
//! a hook with them.

use std::os::fd::OwnedFd;

use aya_obj::generated::{BPF_ALU64, BPF_EXIT, BPF_JMP, BPF_K, BPF_MOV, bpf_insn};

use super::{
    Error,
    btf::Facts,
    pins::Locked,
    programs::{self, Hierarchies},
};
use crate::sys;

/// They go when this does.
#[derive(Debug)]
pub struct Noop {
    _links: Vec<OwnedFd>,
}

impl Noop {
    /// Attaches one wherever guards with targets in these hierarchies have a program.
    ///
    /// # Errors
    /// When the kernel has not what there is to attach to, or does not attach it.
    pub fn attach(_lock: &Locked, hierarchies: Hierarchies) -> Result<Self, Error> {
        let facts = Facts::of_kernel()?;
        let (level, _) = Locked::strongest(freezer_guard_abi::Level::Enforce)?;
        let attach = |program: &programs::Program| {
            let attachment = program.attachment(level, &facts)?;
            let loaded = sys::load("empty", &nothing(), None, c"GPL", attachment).map_err(
                |(source, log)| Error::Load {
                    program: program.name,
                    source,
                    log,
                },
            )?;
            sys::attach(&loaded).map_err(Error::failed(format!(
                "attach an empty program where {} goes",
                program.name
            )))
        };
        let links = programs::at(level)
            .filter(|program| program.is_needed(hierarchies))
            .map(attach)
            .collect::<Result<_, _>>()?;
        Ok(Self { _links: links })
    }
}

/// `return 0;`
fn nothing() -> [bpf_insn; 2] {
    let instruction = |code: u32| bpf_insn {
        code: code as u8,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    };
    [
        instruction(BPF_ALU64 | BPF_MOV | BPF_K),
        instruction(BPF_JMP | BPF_EXIT),
    ]
}
