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
                #[doc = concat!("`", $struct, ".", $member, "`")]
                pub $field: u32,
            )+
        }

        impl KernelOffsets {
            /// Every field as struct and member.
            pub const FIELDS: &[(&str, &str)] = &[$(($struct, $member)),+];

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
    path_dentry = "path"."dentry";
    inode_i_sb = "inode"."i_sb";
    inode_i_ino = "inode"."i_ino";
    inode_i_private = "inode"."i_private";
    super_block_s_magic = "super_block"."s_magic";
    dentry_d_name = "dentry"."d_name";
    dentry_d_parent = "dentry"."d_parent";
    dentry_d_inode = "dentry"."d_inode";
    qstr_len = "qstr"."len";
    qstr_name = "qstr"."name";
    kernfs_node_priv = "kernfs_node"."priv";
    cgroup_root = "cgroup"."root";
    cgroup_root_hierarchy_id = "cgroup_root"."hierarchy_id";
    task_struct_tgid = "task_struct"."tgid";
    task_struct_pid = "task_struct"."pid";
}
