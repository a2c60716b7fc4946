//! The record of a guard that `doctor` has tried out.

use std::collections::BTreeMap;

use freezer_guard_abi::{Level, Protection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    guard::{self, chain},
    kernel::{self, Levels},
};

/// How many lines of a verifier's log are kept: the last ones tell why it rejects a program.
const LINES: usize = 100;

/// A guard that was tried out on a cgroup of its own.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Trial {
    /// The hierarchy of the cgroup: `v1` or `v2`.
    pub hierarchy: String,
    /// The level that the BPF programs were loaded for, or null if there was no guard.
    #[serde(default)]
    pub loaded: Option<String>,
    /// Whether the programs were loaded before, since other guards were in force. Then the level may be
    /// weaker than the strongest of this host.
    #[serde(default)]
    pub held: bool,
    /// The level of each protection, or null if there was no guard.
    pub levels: Option<BTreeMap<String, String>>,
    /// Whether the guard refused a write by another process, or null if there was no guard.
    pub refused: Option<bool>,
    /// Whether the same write worked after the end of the guard, or null if there was no guard.
    pub permitted_afterwards: Option<bool>,
    /// The number of violations that the guard counted, or null if there was no guard.
    pub violations: Option<u64>,
    /// Whether the kernel called the programs at the begin and at the end of the guard, or null if there
    /// was no guard.
    pub proven: Option<bool>,
    /// The reasons why there was no guard, or no stronger one.
    pub reasons: Vec<Reason>,
}

/// A reason why a guard is not stronger.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// The reason, or null if it may name a file, process, cgroup or user of the host.
    pub text: Option<String>,
    /// The end of the verifier's log, or null.
    pub verifier_log: Option<String>,
}

impl Trial {
    /// Returns the level that the BPF programs were loaded for, if there was a guard.
    pub(super) fn loaded(&self) -> Option<Level> {
        let name = self.loaded.as_deref().filter(|_| self.levels.is_some())?;
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// One without a guard.
    pub(super) fn failed(hierarchy: &str, error: &guard::Error) -> Self {
        let of_kernel = error.kernel_errors();
        let reasons = match of_kernel.is_empty() {
            true => vec![Reason {
                text: public(error),
                verifier_log: None,
            }],
            false => of_kernel.into_iter().map(Reason::of).collect(),
        };
        Self {
            hierarchy: hierarchy.to_owned(),
            loaded: None,
            held: false,
            levels: None,
            refused: None,
            permitted_afterwards: None,
            violations: None,
            proven: None,
            reasons,
        }
    }
}

impl Reason {
    pub(super) fn of(error: &kernel::Error) -> Self {
        let log = error.verifier_log().map(|log| {
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        });
        Self {
            text: (!error.names_a_process()).then(|| chain(error)),
            verifier_log: log,
        }
    }
}

/// The text of an error, unless it may name a file, process, cgroup or user of the host.
pub(super) fn public(error: &guard::Error) -> Option<String> {
    use guard::Error::{Kernel, NoProof, PidNamespace, TooWeak};
    let is_public = match error {
        Kernel(_) | TooWeak { .. } => {
            let of_kernel = error.kernel_errors();
            !of_kernel.into_iter().any(kernel::Error::names_a_process)
        }
        NoProof(_) | PidNamespace => true,
        _ => false,
    };
    is_public.then(|| chain(error))
}

/// The names of levels, by the names of protections.
pub(super) fn named(levels: Levels) -> BTreeMap<&'static str, &'static str> {
    let each = Protection::ALL.into_iter().zip(levels);
    each.map(|(protection, level)| (protection.name(), Level::name_of(level)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{io, path::PathBuf};

    use super::{Reason, public};
    use crate::{guard, kernel};

    #[test]
    fn an_error_that_names_something_of_the_host_is_left_out() {
        let error = guard::Error::NotGuarded(PathBuf::from("/sys/fs/cgroup/secret"));
        assert_eq!(public(&error), None);
        assert_eq!(public(&kernel::Error::Locked(None).into()), None);
        let error = guard::Error::from(kernel::Error::Field("cgroup", "kn"));
        assert!(public(&error).is_some_and(|text| text.contains("cgroup.kn")));
    }

    #[test]
    fn the_end_of_the_log_of_the_verifier_is_kept() {
        let log: Vec<_> = (0..1000).map(|line| line.to_string()).collect();
        let reason = Reason::of(&kernel::Error::Load {
            program: "task_kill",
            source: io::Error::other("rejected"),
            log: log.join("\n"),
        });
        let log = reason.verifier_log.unwrap_or_default();
        assert!(log.starts_with("900\n") && log.ends_with("\n999"), "{log}");
    }
}
