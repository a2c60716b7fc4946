//! The last guards that have ended. A file keeps them over a restart of the service and of the
//! host.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use freezer_guard::guard::Status;
use freezer_guard_abi::GuardId;

use super::replace::replace_on_disk;

/// The file.
pub(crate) const LAST: &str = "/var/lib/freezer-guard/last.json";
/// How many guards it has.
const KEPT: usize = 64;

/// The last guards that have ended, the oldest first.
pub(super) struct History(VecDeque<Status>);

impl History {
    /// Reads the file of an earlier service, as far as this version can read it.
    pub(super) fn open() -> Self {
        let bytes = fs::read(LAST).ok();
        let last = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self(last.unwrap_or_default())
    }

    pub(super) fn push(&mut self, guard: Status) {
        self.0.push_back(guard);
        while self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    pub(super) fn last(&self) -> Vec<Status> {
        self.0.iter().cloned().collect()
    }

    /// Whether this guard is among them.
    pub(super) fn has(&self, id: GuardId) -> bool {
        self.0.iter().any(|guard| guard.id == id)
    }
}

/// Writes the file, and makes its directory if systemd has not done so (`StateDirectory=`).
///
/// # Errors
/// See [`replace_on_disk`].
pub(super) fn keep(last: &[Status]) -> io::Result<()> {
    let path = Path::new(LAST);
    if let Some(dir) = path.parent()
        && !dir.exists()
    {
        DirBuilder::new().mode(0o700).create(dir)?;
    }
    replace_on_disk(path, 0o600, &serde_json::to_vec(last)?)
}
