//! What this host can do, checked item by item, and tried out in the end.

mod bundle;
mod host;
mod kernel;
mod live;
mod replay;
mod trial;

use std::collections::BTreeMap;

use schemars::JsonSchema;

use crate::kernel::ProgramReport;
pub use bundle::{Bundle, KernelFacts, MountedHierarchies, PublicCheck};
pub use replay::{Replay, Row};
pub use trial::{Reason, Trial};

pub use kernel::{TESTED, release};

/// The verdict of a check, or of all of them.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "CheckVerdict")]
pub enum Verdict {
    /// It is as it should be.
    Good,
    /// Something works with limits, or not at all.
    Limited,
    /// This host can have no guard.
    Unusable,
}

/// One check.
#[derive(Debug, Clone, serde::Serialize, JsonSchema)]
pub struct Check {
    /// The name of the check.
    pub name: &'static str,
    /// The verdict of the check.
    pub verdict: Verdict,
    /// The finding of the check.
    pub finding: String,
    /// The remedy, or null.
    pub remedy: Option<String>,
    /// Whether the finding may name a file, process, cgroup or user of the host.
    #[serde(skip)]
    pub is_private: bool,
}

impl Check {
    fn good(name: &'static str, finding: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            finding: finding.into(),
            remedy: None,
            is_private: false,
        }
    }

    /// Keeps the finding out of a [`Bundle`].
    fn private(self) -> Self {
        Self {
            is_private: true,
            ..self
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

/// Everything that the checks of this host have found.
#[derive(Debug, Clone, serde::Serialize, JsonSchema)]
pub struct Report {
    /// The verdict of the worst check.
    pub verdict: Verdict,
    /// The release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// The level of each protection on this host, or null if it can have no guard.
    pub levels: Option<BTreeMap<&'static str, &'static str>>,
    /// The checks, in their order.
    pub checks: Vec<Check>,
    /// The BPF programs of a guard on this host.
    pub programs: Vec<ProgramReport>,
    /// The guards that were tried out: for a [`Bundle`].
    #[serde(skip)]
    pub trials: Vec<Trial>,
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
    let are_good = |check: &Check| check.verdict != Verdict::Unusable;
    let live = live::test(checks.iter().all(are_good));
    checks.extend(live.checks);
    checks.extend(live::check(&live.programs));
    let worst = checks.iter().map(|check| check.verdict).max();
    Report {
        verdict: worst.unwrap_or(Verdict::Good),
        kernel: release(),
        levels: live.levels.map(trial::named),
        checks,
        programs: live.programs,
        trials: live.trials,
    }
}
