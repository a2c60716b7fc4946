//! The kernel's struct fields that the programs read.
//!
//! rustc emits no CO-RE relocations: user space looks each offset up in the
//! running kernel's BTF and writes it into read-only data before the load. The
//! verifier then sees constants.

macro_rules! kernel_fields {
    ($($field:ident = $struct:literal . $member:literal;)+) => {
        /// Byte offsets of struct members in the running kernel.
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct KernelOffsets {
            $(
                #[doc = concat!("`", $struct, ".", $member, "`; `|` stands between names of several releases, `.` before a member of a member, `[N]` after an array")]
                pub $field: u32,
            )+
        }

        impl KernelOffsets {
            /// What stands there until user space has looked them up.
            pub const ZERO: Self = Self { $($field: 0,)+ };

            /// Every field as struct and member.
            pub const FIELDS: &[(&str, &str)] = &[$(($struct, $member)),+];

            /// In the order of [`Self::FIELDS`].
            pub const fn values(&self) -> [u32; Self::FIELDS.len()] {
                [$(self.$field),+]
            }

            /// Looks each member up with `offset(struct, member)`.
            ///
            /// # Errors
            /// The first error of `offset`.
            pub fn resolve<E>(
                mut offset: impl FnMut(&'static str, &'static str) -> Result<u32, E>,
            ) -> Result<Self, E> {
                Ok(Self { $($field: offset($struct, $member)?,)+ })
            }
        }
    };
}

kernel_fields! {
    file_f_inode = "file"."f_inode";
    file_f_path = "file"."f_path";
    path_mnt = "path"."mnt";
    vfsmount_mnt_flags = "vfsmount"."mnt_flags";
    path_dentry = "path"."dentry";
    inode_i_sb = "inode"."i_sb";
    inode_i_mode = "inode"."i_mode";
    inode_i_uid = "inode"."i_uid";
    inode_i_private = "inode"."i_private";
    super_block_s_user_ns = "super_block"."s_user_ns";
    user_namespace_level = "user_namespace"."level";
    user_namespace_parent = "user_namespace"."parent";
    user_namespace_owner = "user_namespace"."owner";
    cred_euid = "cred"."euid";
    cred_cap_effective = "cred"."cap_effective";
    cred_user_ns = "cred"."user_ns";
    super_block_s_magic = "super_block"."s_magic";
    dentry_d_name = "dentry"."d_name";
    qstr_len = "qstr"."len";
    qstr_name = "qstr"."name";
    kernfs_node_name = "kernfs_node"."name";
    kernfs_node_parent = "kernfs_node"."parent|__parent";
    kernfs_node_priv = "kernfs_node"."priv";
    kernfs_node_id = "kernfs_node"."id";
    seq_file_private = "seq_file"."private";
    kernfs_open_file_kn = "kernfs_open_file"."kn";
    cgroup_root = "cgroup"."root";
    cgroup_subsys = "cgroup"."subsys";
    cgroup_kn = "cgroup"."kn";
    cgroup_self = "cgroup"."self";
    cgroup_level = "cgroup"."level";
    cgroup_freezer = "cgroup"."freezer";
    cgroup_freezer_state_freeze = "cgroup_freezer_state"."freeze";
    cgroup_root_hierarchy_id = "cgroup_root"."hierarchy_id";
    cgroup_subsys_state_cgroup = "cgroup_subsys_state"."cgroup";
    cgroup_subsys_state_parent = "cgroup_subsys_state"."parent";
    css_set_dfl_cgrp = "css_set"."dfl_cgrp";
    cgroup_nr_populated_csets = "cgroup"."nr_populated_csets|self.nr_populated_csets";
    cgroup_nr_populated_domain_children = "cgroup"."nr_populated_domain_children|self.nr_populated_children";
    css_set_nr_tasks = "css_set"."nr_tasks";
    css_set_subsys = "css_set"."subsys";
    task_struct_cred = "task_struct"."cred";
    task_struct_tgid = "task_struct"."tgid";
    task_struct_pid = "task_struct"."pid";
    task_struct_cgroups = "task_struct"."cgroups";
    task_struct_flags = "task_struct"."flags";
    task_struct_start_boottime = "task_struct"."start_boottime";
    task_struct_exit_code = "task_struct"."exit_code";
    task_struct_ptrace = "task_struct"."ptrace";
    task_struct_ptraced = "task_struct"."ptraced";
    task_struct_ptrace_entry = "task_struct"."ptrace_entry";
    task_struct_parent = "task_struct"."parent";
    task_struct_real_parent = "task_struct"."real_parent";
    task_struct_group_leader = "task_struct"."group_leader";
    task_struct_signal = "task_struct"."signal";
    task_struct_sighand = "task_struct"."sighand";
    sighand_struct_action = "sighand_struct"."action";
    signal_struct_flags = "signal_struct"."flags";
    task_struct_thread_pid = "task_struct"."thread_pid";
    task_struct_pid_links = "task_struct"."pid_links";
    linux_binprm_file = "linux_binprm"."file";
    mm_struct_owner = "mm_struct"."owner";
    mm_struct_exe_file = "mm_struct"."exe_file";
    vm_area_struct_vm_mm = "vm_area_struct"."vm_mm";
    proc_inode_pid = "proc_inode"."pid";
    proc_inode_vfs_inode = "proc_inode"."vfs_inode";
    task_struct_mm = "task_struct"."mm";
    ctl_table_procname = "ctl_table"."procname";
    ctl_table_data = "ctl_table"."data";
    freezer_css = "freezer"."css";
    freezer_state = "freezer"."state";
    kernel_siginfo_si_code = "kernel_siginfo"."si_code";
    pid_level = "pid"."level";
    pid_numbers = "pid"."numbers";
    pid_tasks = "pid"."tasks";
    upid_ns = "upid"."ns";
    pid_namespace_idr = "pid_namespace"."idr";
    idr_idr_rt = "idr"."idr_rt";
    xarray_xa_head = "xarray"."xa_head";
    xa_node_shift = "xa_node"."shift";
    xa_node_slots = "xa_node"."slots";
    pt_regs_call = "pt_regs"."orig_ax|syscallno";
    pt_regs_second = "pt_regs"."si|regs[1]";
    pt_regs_third = "pt_regs"."dx|regs[2]";
}

/// The numbers of the system calls that write to a file. Each architecture has its own.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct WritingCalls {
    /// The calls that take one buffer: `write`, `pwrite64`.
    pub plain: [u32; 2],
    /// The calls that take a list of buffers: `writev`, `pwritev`, `pwritev2`.
    pub vectored: [u32; 3],
}

impl WritingCalls {
    /// The value before user space fills in the numbers.
    pub const NONE: Self = Self {
        plain: [u32::MAX; 2],
        vectored: [u32::MAX; 3],
    };
}

/// In place of `freezer_cgrp_id` on a kernel without the v1 freezer.
pub const NO_FREEZER: u32 = u32::MAX;
