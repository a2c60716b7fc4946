//! What is known to go wrong with which CRIU on which host.

use std::{fs, path::Path};

use super::{Criu, output_of};
use crate::{
    cgroup,
    quirks::{self, CriuFacts},
};

/// Something of CRIU's that is known to go wrong, whatever we do.
pub struct Bug {
    is_here: fn(&CriuFacts) -> bool,
    /// What goes wrong.
    pub what: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

const BUGS: [Bug; 3] = [
    Bug {
        is_here: quirks::criu_does_not_start,
        what: "does not start on this kernel",
        remedy: "use CRIU 4.1.1 or later",
    },
    Bug {
        is_here: quirks::criu_fails_with_action_script_of_runc,
        what: "fails at every checkpoint by runc, since a file in /etc/criu names an action-script",
        remedy: "use CRIU 3.19 or later, or remove the action-script",
    },
    Bug {
        is_here: quirks::criu_takes_v2_for_v1,
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
    /// Those of its bugs that show on this host. `passes_check`: whether [`Criu::check`] succeeds.
    pub fn bugs(&self, passes_check: bool) -> impl Iterator<Item = &'static Bug> {
        let facts = CriuFacts {
            version: self.version,
            passes_check,
            runc_has_action_script: runc_has_action_script(),
            is_hybrid: is_hybrid(),
        };
        BUGS.iter().filter(move |bug| (bug.is_here)(&facts))
    }
}
