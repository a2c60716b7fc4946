//! What this host can do, checked item by item, and tried out in the end.

mod host;
mod kernel;
mod live;

use std::collections::BTreeMap;

use freezer_guard_abi::{Level, Protection};

use crate::kernel::ProgramReport;
pub use kernel::{TESTED, release};

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Something works less well, or not at all.
    Limited,
    /// No guard can be had.
    Unusable,
}

/// One thing that was looked at.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Check {
    fn good(name: &'static str, finding: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            finding: finding.into(),
            remedy: None,
        }
    }

    fn limited(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Limited,
            remedy: Some(remedy.into()),
            ..Self::good(name, finding)
        }
    }

    fn unusable(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Unusable,
            ..Self::limited(name, finding, remedy)
        }
    }
}

/// All that was found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// That of the worst check.
    pub verdict: Verdict,
    /// The kernel's release, as `uname -r` has it.
    pub kernel: String,
    /// The level of each protection on this host; `None` when there can be no guard.
    pub levels: Option<BTreeMap<&'static str, &'static str>>,
    /// Everything that was looked at, in this order.
    pub checks: Vec<Check>,
    /// The BPF programs of such a guard.
    pub programs: Vec<ProgramReport>,
}

/// Looks at everything. Makes a cgroup in each hierarchy for a moment, guards it
/// and tries to disturb it.
pub fn examine() -> Report {
    let mut checks = vec![
        kernel::version(),
        kernel::btf(),
        kernel::security_modules(),
        kernel::lockdown(),
        kernel::preemption(),
        kernel::capabilities(),
        kernel::bpffs(),
        kernel::pins(),
        host::service(),
        host::cgroups(),
    ];
    checks.extend(host::criu());
    checks.extend(host::checkpointers());
    checks.push(host::engines());
    let live = live::test();
    checks.extend(live.checks);
    checks.extend(live::check(&live.programs));
    let worst = checks.iter().map(|check| check.verdict).max();
    Report {
        verdict: worst.unwrap_or(Verdict::Good),
        kernel: release(),
        levels: live.levels.map(|levels| {
            let each = Protection::ALL.into_iter().zip(levels);
            each.map(|(protection, level)| (protection.name(), Level::name_of(level)))
                .collect()
        }),
        checks,
        programs: live.programs,
    }
}
