//! What the kernel says of a program: its size, and how often it was left out.

use std::{borrow::Cow, path::Path};

use aya::programs::ProgramInfo;
use freezer_guard_abi::Level;

use super::{
    Error,
    programs::{self, Program},
};
use crate::sys;

/// Returns how many calls that may have been violations the programs of this level have missed
/// since they were loaded, because another call was under way on the same CPU. Most programs
/// that notice or count sit where the kernel holds a mutex or has interrupts off, and miss none.
pub(super) fn missed(level: Level, dir: &Path) -> Result<u64, Error> {
    programs::at(level)
        .filter(|program| program.may_miss(level))
        .map(|program| program.recursion_misses(dir))
        .sum()
}

impl Program {
    /// A number of itself and of each of its copies: of those that are attached, or else loaded.
    fn numbers(&self, dir: &Path, name: &'static str) -> impl Iterator<Item = Result<u64, Error>> {
        let is_attached = self.link_pin(dir).exists();
        let pins = self.pins(dir);
        pins.filter(move |(program, link)| program.exists() && (link.exists() || !is_attached))
            .map(move |(program, _)| self.number(&program, name))
    }

    /// How many calls have got past all copies, at most; 0 when it is not loaded.
    fn recursion_misses(&self, dir: &Path) -> Result<u64, Error> {
        self.numbers(dir, "recursion_misses")
            .reduce(|least, misses| Ok(least?.min(misses?)))
            .unwrap_or(Ok(0))
    }

    /// A line of `bpf_prog_show_fdinfo`.
    fn number(&self, pin: &Path, name: &'static str) -> Result<u64, Error> {
        let failed = || format!("read {name} of the BPF program {}", self.name);
        let program = sys::open_pin(pin).map_err(Error::failed(failed()))?;
        sys::fdinfo(program, name)
            .map_err(Error::failed(failed()))?
            .ok_or_else(|| Error::failed(failed())("the kernel does not tell"))
    }

    /// See [`ProgramReport::recursion_misses`]; 0 where the kernel does not tell.
    pub(super) fn left_out(&self, dir: &Path) -> u64 {
        self.recursion_misses(dir).unwrap_or_default()
    }

    /// How often the kernel has called it or a copy; `None` if it does not count or is not loaded. A copy that
    /// refuses keeps the others from a call.
    fn calls(&self, dir: &Path) -> Option<u64> {
        let calls = self.numbers(dir, "run_cnt");
        calls.reduce(|all, calls| Ok(all? + calls?))?.ok()
    }

    /// What the kernel says of it.
    pub(super) fn report(&self, level: Level, dir: &Path) -> ProgramReport {
        let info = ProgramInfo::from_pin(self.program_pin(dir)).ok();
        let info = info.as_ref();
        ProgramReport {
            name: self.name.into(),
            hook: self.hook(level),
            loaded: info.is_some(),
            attached: self.link_pin(dir).exists(),
            instructions_verified: info.and_then(ProgramInfo::verified_instruction_count),
            bytes_translated: info.and_then(ProgramInfo::size_translated),
            bytes_jited: info.map(ProgramInfo::size_jitted),
            recursion_misses: self.left_out(dir),
            copies_misses: self
                .numbers(dir, "recursion_misses")
                .collect::<Result<_, _>>()
                .unwrap_or_default(),
            calls: self.calls(dir),
        }
    }
}

/// The state of a program on this kernel.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(rename = "Program")]
pub struct ProgramReport {
    /// The name of the program.
    pub name: Cow<'static, str>,
    /// The type and the hook of the program, in the kernel's words.
    pub hook: String,
    /// Whether the kernel has loaded it.
    pub loaded: bool,
    /// Whether it is attached. Some programs are needed on v1 only or on v2 only.
    pub attached: bool,
    /// The number of instructions that the verifier has walked, or null before Linux 5.16.
    pub instructions_verified: Option<u32>,
    /// Its size after the verifier, in bytes.
    pub bytes_translated: Option<u32>,
    /// The size of its machine code, in bytes.
    pub bytes_jited: Option<u32>,
    /// The number of runs that the kernel has skipped. For a program with copies: that of the copy with the
    /// fewest skipped runs.
    pub recursion_misses: u64,
    /// The same number for the program itself, and then for each copy. Absent if it is not loaded, or if
    /// the kernel does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies_misses: Vec<u64>,
    /// The number of calls of it and its copies during the check, or null if the check does not call it.
    pub calls: Option<u64>,
}
