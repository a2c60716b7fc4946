//! The object's maps and programs, and how they get into the kernel.
//!
//! aya-obj parses and relocates it. aya's own loader has no programs that modify what
//! a function returns, and parses all of the kernel's BTF, of which nothing is relocated
//! here.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use aya_obj::{
    Object,
    generated::{BPF_ALU64, BPF_CALL, BPF_JMP, BPF_K, BPF_MOV, BPF_PSEUDO_KFUNC_CALL, bpf_insn},
};
use freezer_guard_abi::{LogLevel, WritingCalls, kfuncs, names};

use super::{
    Error,
    btf::Facts,
    object::{missing, parse},
    sizes,
};
use crate::{
    quirks::Kfuncs,
    sys::{self, Attachment, Functions},
};

/// `r0 = IMMEDIATE`
const NOTHING: u8 = (BPF_ALU64 | BPF_MOV | BPF_K) as u8;

const DOING: &str = "prepare the BPF object";

/// [`WritingCalls`] of this machine, word by word.
fn writing_calls() -> [u32; size_of::<WritingCalls>() / 4] {
    [
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_writev,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
    ]
    .map(|number| number as u32)
}

/// The code of the programs, and the maps that they use.
pub(super) struct Code {
    object: Object,
    btf: OwnedFd,
    /// The code has their numbers.
    _maps: Vec<OwnedFd>,
}

impl Code {
    /// Makes those maps that are not pinned in `dir` yet, for this kernel, and pins them. The
    /// level is in one of them: what is loaded later has that of the first load.
    pub(super) fn new(facts: &Facts, dir: &Path, log: LogLevel) -> Result<Self, Error> {
        let mut object = parse()?;
        let bytes = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        let globals = [
            (names::OFFSETS, bytes(&facts.offsets.values())),
            (names::FREEZER, bytes(&[facts.freezer])),
            (names::PROBES_BY_VMA, bytes(&[facts.probes_by_vma.into()])),
            (names::WRITING_CALLS, bytes(&writing_calls())),
            (names::LOG_LEVEL, vec![log as u8]),
        ];
        let globals = globals
            .iter()
            .map(|(name, bytes)| (*name, (&**bytes, true)));
        object
            .patch_map_data(globals.collect())
            .map_err(Error::failed(DOING))?;
        let definitions = object.maps.clone();
        let maps = definitions
            .iter()
            .map(|(name, definition)| {
                make(
                    name,
                    &sizes::sized(name, definition, facts.allocates_by_need, log),
                    dir,
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        // After the maps: where bpf(2) is forbidden there seem to be no features.
        let features = aya::features().btf();
        let features =
            features.ok_or_else(|| Error::failed(DOING)("the kernel takes no BTF of programs"))?;
        let btf = object
            .fixup_and_sanitize_btf(features)
            .map_err(Error::failed(DOING))?
            .ok_or_else(|| missing("BTF"))?;
        let btf = sys::load_btf(&btf.to_bytes()).map_err(not_loaded("(its BTF)"))?;
        let text_sections: HashSet<_> = object
            .functions
            .keys()
            .map(|(section_index, _)| *section_index)
            .collect();
        let made = definitions.iter().zip(&maps);
        object
            .relocate_maps(
                made.map(|((name, definition), map)| (&**name, map.as_raw_fd(), definition)),
                &text_sections,
            )
            .map_err(Error::failed(DOING))?;
        object
            .relocate_calls(&text_sections)
            .map_err(Error::failed(DOING))?;
        Ok(Self {
            object,
            btf,
            _maps: maps,
        })
    }

    /// Loads the program `name`. `kfuncs`: it calls these in place of their stand-ins; `None`: it calls
    /// nothing there.
    pub(super) fn load(
        &self,
        name: &'static str,
        attachment: Attachment,
        kfuncs: Option<Kfuncs>,
    ) -> Result<OwnedFd, Error> {
        let program = self
            .object
            .programs
            .get(name)
            .ok_or_else(|| missing(name))?;
        let code = self
            .object
            .functions
            .get(&(program.section_index, program.address))
            .ok_or_else(|| missing(name))?;
        let functions = Functions {
            btf: &self.btf,
            places: &code.func_info.func_info,
        };
        let mut instructions = code.instructions.clone();
        for instruction in &mut instructions {
            put_kfunc(instruction, kfuncs);
        }
        sys::load(
            name,
            &instructions,
            Some(functions),
            &program.license,
            attachment,
        )
        .map_err(|(source, log)| Error::Load {
            program: name,
            source,
            log,
        })
    }
}

/// Puts one of these functions, or nothing, into an instruction that calls its stand-in.
fn put_kfunc(instruction: &mut bpf_insn, kfuncs: Option<Kfuncs>) {
    const CALL: u8 = (BPF_JMP | BPF_CALL) as u8;
    let is_helper = instruction.code == CALL && instruction.src_reg() == 0;
    let number = instruction.imm.cast_unsigned().wrapping_sub(kfuncs::FIRST) as usize;
    if !is_helper || number >= kfuncs::NAMES.len() {
        return;
    }
    match kfuncs {
        Some(kfuncs) => {
            instruction.set_src_reg(BPF_PSEUDO_KFUNC_CALL as u8);
            instruction.imm = kfuncs[number].cast_signed();
        }
        None => {
            *instruction = bpf_insn {
                code: NOTHING,
                imm: 0,
                ..*instruction
            }
        }
    }
}

fn not_loaded(program: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Load {
        program,
        source,
        log: String::new(),
    }
}

/// Makes the readers' maps and pins them in `dir`.
pub(super) fn make_readers(dir: &Path) -> Result<(), Error> {
    let object = parse()?;
    for name in names::OF_READERS {
        let definition = object.maps.get(name).ok_or_else(|| missing(name))?;
        make(name, definition, dir)?;
    }
    Ok(())
}

/// Opens a map that is pinned, or makes it and pins it. It may be there from a load before,
/// and those of the readers outlive the programs while somebody follows the events.
fn make(name: &str, definition: &aya_obj::Map, dir: &Path) -> Result<OwnedFd, Error> {
    // bpffs keeps names with a dot for itself, and the globals' maps are called `.bss`.
    let pin = dir.join(name.trim_start_matches('.').replace('.', "-"));
    if pin.exists() {
        return sys::open_pin(&pin).map_err(Error::failed(format!("open {}", pin.display())));
    }
    let create = |definition: &aya_obj::Map, inner: Option<&OwnedFd>| {
        sys::create_map(name, definition, inner).map_err(not_loaded("(its maps)"))
    };
    let inner = definition.inner().map(|inner| create(&inner, None));
    let map = create(definition, inner.transpose()?.as_ref())?;
    sys::pin(&map, &pin).map_err(Error::failed(format!("pin {}", pin.display())))?;
    Ok(map)
}
