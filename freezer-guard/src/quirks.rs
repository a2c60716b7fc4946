//! Differences between kernels, and bugs of CRIU, on which a decision of this program depends.
//!
//! Each has one predicate here, and one row in the table of `docs/kernels.md`, which is made from
//! [`QUIRKS`]. Distributions backport features, so no predicate asks for the kernel's release: it
//! asks the kernel's BTF, or the result of an attempt. Only the bugs of CRIU go by CRIU's version.

use std::io;

use freezer_guard_abi::kfuncs;

/// The answers of a kernel's BTF.
pub(crate) trait KernelTypes {
    /// The offset of a member, bytes. `|` stands between names of several releases, and `.` before a
    /// member of a member.
    fn offset(&self, container: &str, member: &str) -> Option<u32>;

    /// The value of a constant of an enum.
    fn constant(&self, name: &str, constant: &str) -> Option<u32>;

    /// Returns whether a function's argument is a pointer to this struct.
    fn takes(&self, function: &str, argument: usize, name: &str) -> bool;

    /// The BTF id of a function, or of the type of a tracepoint.
    fn target(&self, name: &str) -> Option<u32>;
}

/// The task that an address space belongs to.
pub(crate) const MEMORY_OWNER: (&str, &str) = ("mm_struct", "owner");

/// The number of the freezer of cgroup v1 among the controllers.
pub(crate) const FREEZER_ID: (&str, &str) = ("cgroup_subsys_id", "freezer_cgrp_id");

/// The function that sets the breakpoint of a uprobe, and the struct that shows where it is.
pub(crate) const SET_BREAKPOINT: (&str, &str) = ("set_swbp", "vm_area_struct");

/// The kernel's hash map, and its own allocator.
pub(crate) const ALLOCATOR: (&str, &str) = ("bpf_htab", "ma");

/// The functions that set and remove the breakpoint of a uprobe take a `struct vm_area_struct *`
/// instead of a `struct mm_struct *`.
///
/// Since Linux 6.16: "kernel/events/uprobes: pass VMA to `set_swbp()`, `set_orig_insn()` and
/// `uprobe_write_opcode()`". BTF has the type of the argument. A program that takes the one for the
/// other reads the wrong memory, so the programs get the answer as a constant.
pub(crate) fn uprobes_take_vma(types: &dyn KernelTypes) -> bool {
    let (function, name) = SET_BREAKPOINT;
    types.takes(function, 1, name)
}

/// A hash map allocates the memory of an entry wherever the program runs.
///
/// Since Linux 6.1: fba1a1c6c912 ("bpf: Convert hash map to `bpf_mem_alloc`."), which gave
/// `struct bpf_htab` the member `ma`. Before, the maps take the memory of all their entries when they
/// are made, so they have fewer.
pub(crate) fn maps_allocate_anywhere(types: &dyn KernelTypes) -> bool {
    let (container, member) = ALLOCATOR;
    types.offset(container, member).is_some()
}

/// The kernel does not know which task an address space belongs to.
///
/// Only with `CONFIG_MEMCG` has `struct mm_struct` the member `owner`. Without it the tripwires for
/// writes to another process's memory cannot tell the target, and the protection `ptrace` is missing.
pub(crate) fn lacks_memory_owner(types: &dyn KernelTypes) -> bool {
    let (container, member) = MEMORY_OWNER;
    types.offset(container, member).is_none()
}

/// The kernel has no freezer of cgroup v1.
///
/// Only with `CONFIG_CGROUP_FREEZER` has `enum cgroup_subsys_id` the constant `freezer_cgrp_id`. Without
/// it there is no `struct freezer` to read, and no guard on v1.
pub(crate) fn lacks_v1_freezer(types: &dyn KernelTypes) -> bool {
    let (name, constant) = FREEZER_ID;
    types.constant(name, constant).is_none()
}

/// The BTF ids of [`kfuncs::NAMES`].
pub(crate) type Kfuncs = [u32; kfuncs::NAMES.len()];

/// The kernel has functions by which a program disables preemption while it decides.
///
/// Since Linux 6.14 (c8e2ee1f3df0, "bpf: Introduce support for `bpf_local_irq_{save,restore}`"). Since 6.15
/// such a program may call global functions meanwhile ("bpf: Summarize sleepable global subprogs"). BTF
/// does not show that, so an attempt to load has to. `target`: the BTF id of a function.
pub(crate) fn preemption_can_be_disabled(target: impl Fn(&str) -> Option<u32>) -> Option<Kfuncs> {
    let [disable, enable, save, restore] = kfuncs::NAMES.map(target);
    Some([disable?, enable?, save?, restore?])
}

/// The kernel attaches no program to this function, since it has too many arguments.
///
/// On x86 a program goes onto functions of at most six arguments before Linux 6.6 (473e3150e30a, "bpf,
/// x86: allow function arguments up to 12 for TRACING"), and other architectures have limits of their
/// own. BTF does not show the limit, so an attempt has to: the attach fails with ENOTSUPP.
pub(crate) fn is_function_too_long(attach: &io::Error) -> bool {
    /// Of `include/linux/errno.h`, which user space does not get.
    const ENOTSUPP: i32 = 524;
    attach.raw_os_error() == Some(ENOTSUPP)
}

/// The kernel attaches no program to any function.
///
/// It lacks `CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS`: on arm64 before Linux 6.4 ("arm64:
/// ftrace: Add direct call support"), and with kernel CFI (`CONFIG_CFI`). `attach`: the error for a function of few
/// arguments, ENOTSUPP.
pub(crate) fn lacks_trampolines(attach: &io::Error) -> bool {
    is_function_too_long(attach)
}

/// The facts about a CRIU and its host on which its bugs depend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CriuFacts {
    /// The first two numbers of its version.
    pub(crate) version: (u32, u32),
    /// Whether `criu check` fails for another reason than a lack of rights.
    pub(crate) fails_check: bool,
    /// Whether a file in `/etc/criu` names an action script, and runc is there.
    pub(crate) runc_has_action_script: bool,
    /// Whether both a freezer of v1 and cgroup v2 are mounted.
    pub(crate) is_hybrid: bool,
}

/// CRIU is too old for the kernel: it does not start.
///
/// CRIU before 4.0 does not start on Linux 6.18 and later, as seen in the guests of the tests. Its own
/// check shows it on any kernel, so this asks for no kernel's release.
pub(crate) fn criu_does_not_start(criu: &CriuFacts) -> bool {
    criu.version < (4, 0) && criu.fails_check
}

/// CRIU fails at every checkpoint by runc, since a file in `/etc/criu` names an action script.
///
/// A bug of CRIU 3.17 and 3.18 (`action-scripts.c`), mended in 3.19.
pub(crate) fn criu_fails_with_action_script_of_runc(criu: &CriuFacts) -> bool {
    ((3, 17)..(3, 19)).contains(&criu.version) && criu.runc_has_action_script
}

/// CRIU treats every freezer as one of v1 on a host with both v1 and v2.
///
/// CRIU before 3.18, as seen in the guests of the tests with 3.17.
pub(crate) fn criu_takes_v2_for_v1(criu: &CriuFacts) -> bool {
    criu.version < (3, 18) && criu.is_hybrid
}

/// A difference, for the documents.
#[derive(Debug, Clone, Copy)]
pub struct Quirk {
    /// The name of its predicate, or of the fields that have several names.
    pub name: &'static str,
    /// The difference.
    pub difference: &'static str,
    /// The kernels, or the versions of CRIU, that have it.
    pub since: &'static str,
    /// How the program recognises it.
    pub recognised: &'static str,
    /// The consequence for guards.
    pub effect: &'static str,
}

/// Every difference.
pub const QUIRKS: [Quirk; 16] = [
    Quirk {
        name: "kernfs_node.parent|__parent",
        difference: "the parent of a kernfs node has another name",
        since: "6.15 (633488947ef6)",
        recognised: "BTF: one of the two members",
        effect: "none: the programs read the member that is there",
    },
    Quirk {
        name: "cgroup.nr_populated_csets|self.nr_populated_csets",
        difference: "the count of a cgroup's own tasks is in its css",
        since: "7.3 (\"cgroup: Move populated counters to cgroup_subsys_state\")",
        recognised: "BTF: one of the two members",
        effect: "none: the programs read the member that is there",
    },
    Quirk {
        name: "cgroup.nr_populated_domain_children|self.nr_populated_children",
        difference: "the css of a cgroup counts the populated cgroups below it",
        since: "7.3, in the same change",
        recognised: "BTF: one of the two members, the cgroup's own first",
        effect: "none: the programs read the member that is there",
    },
    Quirk {
        name: "pt_regs.orig_ax|syscallno",
        difference: "x86 and arm64 keep the number of a system call in different fields",
        since: "always",
        recognised: "BTF: one of the two members",
        effect: "none: the programs read the member that is there, and user space gives them the numbers",
    },
    Quirk {
        name: "pt_regs.si|regs[1]",
        difference: "the second argument of a system call is in `si` on x86, in `regs[1]` on arm64",
        since: "always",
        recognised: "BTF: one of the two members",
        effect: "none: the programs read the member that is there",
    },
    Quirk {
        name: "pt_regs.dx|regs[2]",
        difference: "the third argument of a system call is in `dx` on x86, in `regs[2]` on arm64",
        since: "always",
        recognised: "BTF: one of the two members",
        effect: "none: the programs read the member that is there",
    },
    Quirk {
        name: "lacks_memory_owner",
        difference: "the kernel does not know which task an address space belongs to",
        since: "without `CONFIG_MEMCG`",
        recognised: "BTF: no `mm_struct.owner`",
        effect: "the protection `ptrace` is missing",
    },
    Quirk {
        name: "lacks_v1_freezer",
        difference: "there is no freezer of cgroup v1",
        since: "without `CONFIG_CGROUP_FREEZER`",
        recognised: "BTF: no `freezer_cgrp_id`",
        effect: "no guard on v1",
    },
    Quirk {
        name: "uprobes_take_vma",
        difference: "the functions for breakpoints of uprobes take a `vm_area_struct`",
        since: "6.16 (\"kernel/events/uprobes: pass VMA to set_swbp(), set_orig_insn() and uprobe_write_opcode()\")",
        recognised: "BTF: the second argument of `set_swbp`",
        effect: "none: the program reads the argument as what it is",
    },
    Quirk {
        name: "maps_allocate_anywhere",
        difference: "a hash map allocates its entries on demand, in any program",
        since: "6.1 (fba1a1c6c912)",
        recognised: "BTF: `bpf_htab.ma`",
        effect: "without it there are at most 1,024 guards, and 16,384 threads of holders",
    },
    Quirk {
        name: "preemption_can_be_disabled",
        difference: "a program can disable preemption while it decides",
        since: "6.14, and 6.15 if it calls global functions meanwhile",
        recognised: "BTF: `bpf_preempt_disable`, `bpf_local_irq_save` and their opposites; an attempt to load",
        effect: "at `best-effort`, a program on writes or signals is attached 12 times without it, and 6 times with it",
    },
    Quirk {
        name: "is_function_too_long",
        difference: "no program goes onto a function with seven arguments",
        since: "before 6.6 (473e3150e30a, x86)",
        recognised: "the attach fails with ENOTSUPP",
        effect: "a `process_vm_writev` that was permitted before the guard began is not detected",
    },
    Quirk {
        name: "lacks_trampolines",
        difference: "the kernel attaches no program to any function",
        since: "arm64 before 6.4 (\"arm64: ftrace: Add direct call support\"), and with kernel CFI",
        recognised: "the attach of a program without which there is no guard fails with ENOTSUPP",
        effect: "no guard; `doctor` reports it",
    },
    Quirk {
        name: "criu_does_not_start",
        difference: "CRIU is too old for the kernel",
        since: "CRIU before 4.0, on Linux 6.18 and later",
        recognised: "CRIU's version, and `criu check` fails as root",
        effect: "no checkpoint; `doctor` reports it",
    },
    Quirk {
        name: "criu_fails_with_action_script_of_runc",
        difference: "CRIU fails if runc calls it and a file in `/etc/criu` names an action script",
        since: "CRIU 3.17 and 3.18",
        recognised: "CRIU's version, and such a file",
        effect: "no checkpoint by runc; `doctor` reports it",
    },
    Quirk {
        name: "criu_takes_v2_for_v1",
        difference: "CRIU treats every freezer as one of v1",
        since: "CRIU before 3.18",
        recognised: "CRIU's version, and both hierarchies are mounted",
        effect: "no checkpoint of a cgroup of v2 on a hybrid host; `doctor` reports it",
    },
];

#[cfg(test)]
mod tests {
    use std::io;

    use freezer_guard_abi::KernelOffsets;

    use super::{
        CriuFacts, QUIRKS, criu_does_not_start, criu_fails_with_action_script_of_runc,
        criu_takes_v2_for_v1, is_function_too_long,
    };

    /// Each predicate has a row, and each field with several names.
    #[test]
    fn the_table_is_complete() {
        let source = include_str!("quirks.rs");
        let predicates = source
            .lines()
            .filter_map(|line| line.strip_prefix("pub(crate) fn ")?.split('(').next());
        let fields = KernelOffsets::FIELDS
            .iter()
            .filter(|(_, member)| member.contains('|'))
            .map(|(container, member)| format!("{container}.{member}"));
        let mut expected: Vec<_> = predicates.map(str::to_owned).chain(fields).collect();
        let mut rows = QUIRKS.map(|quirk| quirk.name.to_owned());
        expected.sort();
        rows.sort();
        assert_eq!(rows[..], expected);
    }

    #[test]
    fn only_one_error_means_a_function_that_is_too_long() {
        assert!(is_function_too_long(&io::Error::from_raw_os_error(524)));
        assert!(!is_function_too_long(&io::Error::from_raw_os_error(
            libc::EINVAL
        )));
        assert!(!is_function_too_long(&io::Error::other("no errno")));
    }

    #[test]
    fn a_bug_of_criu_shows_only_where_all_of_it_is() {
        let good = CriuFacts {
            version: (4, 2),
            fails_check: false,
            runc_has_action_script: true,
            is_hybrid: true,
        };
        let with = |version, fails_check| CriuFacts {
            version,
            fails_check,
            ..good
        };
        assert!(!criu_does_not_start(&with((3, 17), false)));
        assert!(!criu_does_not_start(&with((4, 1), true)));
        assert!(criu_does_not_start(&with((3, 19), true)));
        for (version, fails, confused) in [
            ((3, 16), false, true),
            ((3, 17), true, true),
            ((3, 18), true, false),
            ((3, 19), false, false),
        ] {
            let criu = with(version, false);
            assert_eq!(criu_fails_with_action_script_of_runc(&criu), fails);
            assert_eq!(criu_takes_v2_for_v1(&criu), confused);
            let elsewhere = CriuFacts {
                runc_has_action_script: false,
                is_hybrid: false,
                ..criu
            };
            assert!(!criu_fails_with_action_script_of_runc(&elsewhere));
            assert!(!criu_takes_v2_for_v1(&elsewhere));
        }
    }
}
