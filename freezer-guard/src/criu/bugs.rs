//! What is known to go wrong with which CRIU on which kernel.

use std::{fs, path::Path};

use procfs::sys::kernel::Version;

use super::{Criu, output_of};
use crate::cgroup;

/// Something of CRIU's that is known to go wrong, whatever we do.
pub struct Bug {
    /// The CRIU that has it: from this version, to before that one.
    criu: [(u32, u32); 2],
    /// The kernels that show it: from this version, to before that one.
    kernel: [(u8, u8); 2],
    /// What else has to be so on this host.
    when: fn() -> bool,
    /// What goes wrong.
    pub what: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

/// No kernel is newer.
const ANY: (u8, u8) = (u8::MAX, 0);

/// Seen in the tests' guests, but for runc's: that is CRIU's own
/// (action-scripts.c, mended in 3.19).
const BUGS: [Bug; 3] = [
    Bug {
        criu: [(0, 0), (4, 0)],
        kernel: [(6, 18), ANY],
        when: || true,
        what: "does not start on this kernel",
        remedy: "use CRIU 4.1.1 or later",
    },
    Bug {
        criu: [(3, 17), (3, 19)],
        kernel: [(0, 0), ANY],
        when: runc_has_action_script,
        what: "fails at every checkpoint by runc, since a file in /etc/criu names an action-script",
        remedy: "use CRIU 3.19 or later, or remove the action-script",
    },
    Bug {
        criu: [(0, 0), (3, 18)],
        kernel: [(0, 0), ANY],
        when: is_hybrid,
        what: "treats every freezer as a v1 freezer on hosts with v1 and v2",
        remedy: "use a v1 cgroup, or a newer CRIU",
    },
];

fn is_hybrid() -> bool {
    matches!(
        (cgroup::freezer_mount(), cgroup::unified_mount()),
        (Ok(Some(_)), Ok(Some(_)))
    )
}

fn runc_has_action_script() -> bool {
    let configured = fs::read_dir("/etc/criu")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .any(|text| {
            text.lines()
                .any(|line| line.trim_start().starts_with("action-script"))
        });
    configured && output_of(Path::new("runc"), &["--version"]).is_ok()
}

impl Criu {
    /// Those of its bugs that show on this host.
    pub fn bugs(&self) -> impl Iterator<Item = &'static Bug> {
        let kernel = Version::current().map(|version| (version.major, version.minor));
        let kernel = kernel.unwrap_or(ANY);
        let version = self.version;
        BUGS.iter().filter(move |bug| {
            (bug.criu[0]..bug.criu[1]).contains(&version)
                && (bug.kernel[0]..bug.kernel[1]).contains(&kernel)
                && (bug.when)()
        })
    }
}
