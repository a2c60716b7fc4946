//! Functions of the kernel that programs call if it has all of them (Linux 6.14). In the object
//! a number that no helper has stands for each. The loader puts the function there, or nothing.

/// The number that stands for the first of [`NAMES`]; those of the others follow.
pub const FIRST: u32 = 0x4000_0000;

/// As BTF names them.
pub const NAMES: [&str; 4] = [
    "bpf_preempt_disable",
    "bpf_preempt_enable",
    "bpf_local_irq_save",
    "bpf_local_irq_restore",
];
