//! What `freezer-guard doctor --json` says in a guest, as far as we use it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Stands before the JSON in what the integration tests write.
const MARK: &str = "doctor: ";

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Report {
    /// `uname -r`
    pub(crate) kernel: String,
    /// Each protection's level; none when there can be no guard.
    pub(crate) levels: Option<BTreeMap<String, String>>,
    pub(crate) programs: Vec<Program>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) name: String,
    /// Whether the kernel has taken it. A baseline is of those that it has.
    #[serde(default = "taken", skip_serializing)]
    pub(crate) loaded: bool,
    /// Before 5.16 the kernel does not tell.
    pub(crate) instructions_verified: Option<u32>,
    pub(crate) bytes_jited: Option<u32>,
}

fn taken() -> bool {
    true
}

impl Report {
    /// The report in a line of output, if there is one.
    pub(crate) fn in_line(line: &str) -> Option<Self> {
        let (_, json) = line.split_once(MARK)?;
        serde_json::from_str(json).ok()
    }
}
