//! Checks the BPF object for an error that only the verifier reports otherwise.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use btf_rs::{Btf, BtfType, Type};
use goblin::elf::Elf;

/// Checks that every global function takes numbers and pointers only: the verifier knows no other
/// argument, not even a struct of one number (`btf_prepare_func_args` of the kernel).
pub(crate) fn check(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let section = btf_section(&bytes).with_context(|| format!("find BTF in {}", path.display()))?;
    let btf = Btf::from_bytes(section).context("parse the BTF of the BPF object")?;
    let mut checked = 0;
    for one in (1..).map_while(|id| btf.resolve_type_by_id(id).ok()) {
        let Type::Func(function) = one else { continue };
        if !function.is_global() {
            continue;
        }
        let name = btf.resolve_name(&function)?;
        checked += 1;
        let Type::FuncProto(prototype) = btf.resolve_chained_type(&function)? else {
            continue;
        };
        for parameter in &prototype.parameters {
            ensure!(
                is_taken(&btf, parameter),
                "the verifier would refuse the BPF function {name}: make each argument a number or a pointer"
            );
        }
    }
    ensure!(
        checked > 0,
        "the BTF of {} has no global function",
        path.display()
    );
    Ok(())
}

fn is_taken(btf: &Btf, argument: &dyn BtfType) -> bool {
    let mut types = btf.chained_type_iter(argument);
    let real =
        types.find(|one| !matches!(one, Type::Const(_) | Type::Volatile(_) | Type::Typedef(_)));
    matches!(
        real,
        Some(Type::Int(_) | Type::Enum(_) | Type::Enum64(_) | Type::Ptr(_))
    )
}

fn btf_section(bytes: &[u8]) -> Option<&[u8]> {
    let elf = Elf::parse(bytes).ok()?;
    let mut headers = elf.section_headers.iter();
    let header = headers.find(|header| elf.shdr_strtab.get_at(header.sh_name) == Some(".BTF"))?;
    bytes.get(header.file_range()?)
}
