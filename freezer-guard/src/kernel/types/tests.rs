//! Kernels whose BTF lacks something, or has it elsewhere. The guests' tests alter a real BTF in the
//! same ways (module `failures`).

#[path = "../../../../tests/src/tool/btf.rs"]
mod altered;
mod blob;

use blob::Blob;
use btf_rs::Btf;
use freezer_guard_abi::{KernelOffsets, Level, NO_FREEZER};

use super::Types;
use crate::{
    kernel::{
        Error,
        btf::{Facts, missing_fields},
        decision::{Decision, HostFacts, decide},
        programs::{Hierarchies, ITERATOR, PROGRAMS, targets},
    },
    quirks::{ALLOCATOR, FREEZER_ID, KernelTypes as _, MEMORY_OWNER},
};

const MODULES: &str = "lockdown,capability,bpf";
const EVERYWHERE: [Hierarchies; 3] = [
    Hierarchies {
        v1: true,
        v2: false,
    },
    Hierarchies {
        v1: false,
        v2: true,
    },
    Hierarchies { v1: true, v2: true },
];

fn types(bytes: &[u8]) -> Types {
    Types::new(Btf::from_bytes(bytes).expect("it is BTF")).expect("it can be read")
}

/// The small kernel with these changes, as `guest-tool renamed` takes them.
fn altered(changes: &[&str]) -> Types {
    let changes: Vec<_> = changes.iter().map(|change| (*change).to_owned()).collect();
    types(&altered::change(Blob::kernel().bytes(), &changes).expect("it has all that"))
}

fn decided(types: &Types, modules: &str, hierarchies: Hierarchies) -> Decision {
    decide(&HostFacts {
        types: Some(types),
        security_modules: Some(modules),
        lockdown: "[none] integrity confidentiality",
        function_tracing: true,
        hierarchies,
        is_refused: &|_| false,
    })
}

fn enforces(decision: &Decision) -> bool {
    let mut levels = decision.levels.iter();
    levels.all(|level| *level == Some(Level::Enforce))
}

fn reasons(decision: &Decision) -> String {
    let reasons: Vec<_> = decision.reasons.iter().map(ToString::to_string).collect();
    reasons.join("; ")
}

/// The fields by the first of their names.
fn fields() -> impl Iterator<Item = (&'static str, &'static str)> {
    KernelOffsets::FIELDS
        .iter()
        .map(|(container, member)| (*container, member.split('|').next().unwrap_or_default()))
}

#[test]
fn a_whole_kernel_enforces() {
    let types = altered(&[]);
    let facts = Facts::look_up(&types).expect("all is there");
    assert_eq!(facts.freezer, 7);
    assert!(facts.probes_by_vma && facts.allocates_by_need);
    assert!(missing_fields(&types).is_empty());
    for hierarchies in EVERYWHERE {
        let decision = decided(&types, MODULES, hierarchies);
        assert!(
            enforces(&decision) && decision.reasons.is_empty(),
            "{decision:?}"
        );
        let decision = decided(&types, "lockdown,yama", hierarchies);
        assert_eq!(decision.levels, [Some(Level::BestEffort); 4]);
        assert!(reasons(&decision).contains("do not include bpf"));
    }
}

/// Either there is no guard, or the protection that needs the field is missing. The reason names it.
#[test]
fn a_field_that_is_missing_or_renamed_is_named() {
    for (container, member) in fields() {
        for change in ["", "=new_name"] {
            let types = altered(&[&format!("{container}.{member}{change}")]);
            let known = KernelOffsets::FIELDS.iter().find(|(name, names)| {
                *name == container && names.split('|').next() == Some(member)
            });
            let names = known.expect("a field").1;
            for hierarchies in EVERYWHERE {
                let decision = decided(&types, MODULES, hierarchies);
                assert!(!enforces(&decision), "{container}.{member}: {decision:?}");
                let name = format!("{container}.{names}");
                assert!(reasons(&decision).contains(&name), "{name}: {decision:?}");
                let is_optional = (container, member) == MEMORY_OWNER;
                assert_eq!(is_optional, decision.levels[0].is_some(), "{name}");
                assert_eq!(is_optional, missing_fields(&types).is_empty(), "{name}");
            }
        }
    }
}

/// The other names of a field do as well.
#[test]
fn a_field_with_a_known_new_name_is_found() {
    let types = altered(&["kernfs_node.parent=__parent"]);
    assert!(enforces(&decided(&types, MODULES, EVERYWHERE[2])));
}

#[test]
fn a_member_of_a_member_is_found() {
    let mut blob = Blob::new();
    let css = blob.structure(
        "cgroup_subsys_state",
        &[("nr_populated_csets", 1, 96)],
        false,
    );
    blob.structure("cgroup", &[("level", 1, 0), ("self", css, 64)], false);
    let types = types(&blob.bytes());
    let names = "nr_populated_csets|self.nr_populated_csets";
    assert_eq!(types.offset("cgroup", names), Some(20));
    assert_eq!(types.offset("cgroup", "self.level"), None);
}

/// arm64 has its registers in an array, inside an anonymous struct.
#[test]
fn an_element_of_an_array_is_found() {
    let mut blob = Blob::new();
    let word = blob.typedef("u32", 1);
    let registers = blob.array(word, 31);
    let inner = blob.structure("", &[("regs", registers, 64)], false);
    let members = [("", inner, 0), ("syscallno", 1, 2048)];
    blob.structure("pt_regs", &members, false);
    let types = types(&blob.bytes());
    let found = ["orig_ax|syscallno", "si|regs[1]", "dx|regs[2]"];
    let found = found.map(|names| types.offset("pt_regs", names));
    assert_eq!(found, [Some(256), Some(12), Some(16)]);
    assert_eq!(types.offset("pt_regs", "syscallno[1]"), None);
}

/// The offset that the programs get is the new one, and no other changes.
#[test]
fn reads_follow_a_field_that_has_moved() {
    let old = Facts::look_up(&altered(&[])).expect("all is there");
    for (index, (container, member)) in fields().enumerate() {
        let name = format!("{container}.{member}");
        let moved = Facts::look_up(&altered(&[&format!("{name}+256")])).expect("all is there");
        let mut expected = old.offsets.values();
        expected[index] += 256;
        assert_eq!(moved.offsets.values(), expected, "{name}");
        let nested = Facts::look_up(&altered(&[&format!("{name}@nested")])).expect("all is there");
        assert_eq!(nested.offsets.values(), old.offsets.values(), "{name}");
    }
}

/// A program reads whole bytes: a bit field is not what it expects.
#[test]
fn a_field_that_is_a_bit_field_now_is_missing() {
    let mut blob = Blob::new();
    let members = [("level", 1, 3 << 24 | 64), ("kn", 1, 128), ("root", 1, 68)];
    blob.structure("cgroup", &members, true);
    let types = types(&blob.bytes());
    assert_eq!(types.offset("cgroup", "level"), None);
    assert_eq!(types.offset("cgroup", "kn"), Some(16));
    assert_eq!(types.offset("cgroup", "root"), None);
}

/// A missing function weakens the protections that need it; the reason names it.
#[test]
fn a_missing_function_is_named() {
    for target in targets() {
        let types = altered(&[&format!("{target}={}", "x".repeat(target.len()))]);
        assert_eq!(types.target(&target), None);
        for hierarchies in EVERYWHERE {
            for (modules, level) in [(MODULES, Level::Enforce), ("yama", Level::BestEffort)] {
                let decision = decided(&types, modules, hierarchies);
                let is_needed = |program: &&crate::kernel::programs::Program| {
                    program.is_needed(hierarchies)
                        && program.target(level) == target
                        && crate::kernel::programs::at(level).any(|one| one.name == program.name)
                };
                let is_missed = target == ITERATOR || PROGRAMS.iter().any(|one| is_needed(&one));
                let is_weaker = decision.levels.iter().any(|found| *found < Some(level));
                assert_eq!(is_weaker, is_missed, "{target}: {decision:?}");
                let is_named = reasons(&decision).contains(&target);
                assert_eq!(is_named, is_missed, "{target}: {decision:?}");
            }
        }
    }
}

#[test]
fn without_the_freezer_of_v1_there_is_no_guard_on_v1() {
    let (_, constant) = FREEZER_ID;
    let types = altered(&[
        &format!("{constant}=x{}", &constant[1..]),
        "freezer.css",
        "freezer.state",
    ]);
    let facts = Facts::look_up(&types).expect("guards on v2 do without");
    assert_eq!(facts.freezer, NO_FREEZER);
    let [v1, v2, both] = EVERYWHERE.map(|hierarchies| decided(&types, MODULES, hierarchies));
    assert!(enforces(&v2), "{v2:?}");
    for decision in [v1, both] {
        assert!(!enforces(&decision), "{decision:?}");
        assert!(reasons(&decision).contains(constant), "{decision:?}");
    }
}

/// Older tools do not know 64-bit enums, so some kernels have none (`pahole --skip_encoding_btf_enum64`).
#[test]
fn enums_of_64_bits_do_not_matter() {
    let (whole, cut) = (altered(&[]), altered(&["no-enum64"]));
    let [whole, cut] = [whole, cut].map(|types| Facts::look_up(&types).expect("all is there"));
    assert_eq!(whole.offsets, cut.offsets);
    assert_eq!((whole.freezer, cut.freezer), (7, 7));
    let mut blob = Blob::new();
    let (name, constant) = FREEZER_ID;
    blob.enumeration_64(name, &[("wide", 1 << 40), (constant, 9)]);
    assert_eq!(types(&blob.bytes()).constant(name, constant), Some(9));
    assert_eq!(types(&blob.bytes()).constant(name, "wide"), None);
}

#[test]
fn uprobes_and_maps_of_older_kernels_are_recognised() {
    let types = altered(&[
        &format!("{}.{}", ALLOCATOR.0, ALLOCATOR.1),
        "vm_area_struct=vm_area_struck",
    ]);
    // The offsets are of no concern here.
    assert!(!crate::quirks::maps_allocate_anywhere(&types));
    assert!(!crate::quirks::uprobes_take_vma(&types));
}

#[test]
fn what_is_no_btf_is_refused() {
    assert!(Btf::from_bytes(b"no BTF").is_err());
    let mut bytes = Blob::kernel().bytes();
    bytes.truncate(bytes.len() / 2);
    let read = Btf::from_bytes(&bytes)
        .map_err(Error::from)
        .and_then(Types::new);
    let decision = read.map(|types| decided(&types, MODULES, EVERYWHERE[1]));
    assert!(decision.is_err() || decision.is_ok_and(|decision| !enforces(&decision)));
}

#[test]
fn a_host_without_what_a_guard_needs_has_none() {
    let types = altered(&[]);
    let host = HostFacts {
        types: Some(&types),
        security_modules: Some(MODULES),
        lockdown: "",
        function_tracing: true,
        hierarchies: EVERYWHERE[1],
        is_refused: &|_| false,
    };
    let locked = HostFacts {
        lockdown: "none integrity [confidentiality]",
        ..host
    };
    let untraced = HostFacts {
        function_tracing: false,
        ..host
    };
    let untyped = HostFacts {
        types: None,
        ..host
    };
    for (host, words) in [
        (locked, "locked down"),
        (untraced, "function tracing is off"),
        (untyped, "CONFIG_DEBUG_INFO_BTF"),
    ] {
        let decision = decide(&host);
        assert_eq!(decision.levels, [None; 4]);
        assert!(reasons(&decision).contains(words), "{decision:?}");
    }
}

/// What an attempt has shown counts more than what BTF promises.
#[test]
fn a_program_that_the_kernel_refuses_is_missing() {
    let types = altered(&[]);
    let decision = |refused: &dyn Fn(&str) -> bool, security_modules| {
        decide(&HostFacts {
            types: Some(&types),
            security_modules: Some(security_modules),
            lockdown: "",
            function_tracing: true,
            hierarchies: EVERYWHERE[1],
            is_refused: refused,
        })
    };
    let without = decision(&|name| name == "task_kill", MODULES);
    assert_eq!(without.levels[1], Some(Level::Detect), "{without:?}");
    assert_eq!(without.levels[0], Some(Level::Enforce));
    let nothing_modifies = |name: &str| {
        let mut refusing = PROGRAMS
            .iter()
            .filter(|one| one.modifies_return(Level::BestEffort));
        refusing.any(|one| one.name == name)
    };
    let without = decision(&nothing_modifies, "yama");
    assert_eq!(without.levels, [Some(Level::Detect); 4], "{without:?}");
}
