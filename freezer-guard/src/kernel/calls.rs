//! The result of the self-test for each program, kept beside its pin until it is unloaded.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{
    Error,
    loading::remove_if_there,
    pins::Locked,
    programs::{self, Hierarchies, PROGRAMS, Program},
};

/// The text of the link for a program that the kernel does not attach.
const NOT_ATTACHABLE: &str = "not-attachable";

/// What the self-test has shown of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallResult {
    /// The kernel calls it.
    Called,
    /// The kernel does not call it, although it is attached.
    NeverCalled,
    /// There was nothing for which the kernel had to call it.
    Unknown,
}

impl CallResult {
    /// The text of the link that keeps the result. (bpffs keeps links beside pins.)
    fn text(self) -> &'static str {
        match self {
            Self::Called => "called",
            Self::NeverCalled => "never-called",
            Self::Unknown => "unknown",
        }
    }
}

impl Program {
    /// Returns whether the self-test has shown that the kernel does not call this program.
    pub(super) fn is_never_called(&self, dir: &Path) -> bool {
        let never = Path::new(CallResult::NeverCalled.text());
        fs::read_link(self.result(dir)).is_ok_and(|result| result == never)
    }

    /// Returns whether an attempt has shown that the kernel does not attach this program.
    pub(super) fn is_not_attachable(&self, dir: &Path) -> bool {
        fs::read_link(self.result(dir)).is_ok_and(|result| result == Path::new(NOT_ATTACHABLE))
    }

    /// Keeps this result, so that nothing attaches the program again.
    pub(super) fn keep_not_attachable(&self, dir: &Path) -> Result<(), Error> {
        let link = self.result(dir);
        remove_if_there(&link)
            .and_then(|()| symlink(NOT_ATTACHABLE, &link))
            .map_err(Error::failed(format!("keep {}", link.display())))
    }

    fn is_tried(&self, dir: &Path) -> bool {
        fs::symlink_metadata(self.result(dir)).is_ok()
    }

    fn result(&self, dir: &Path) -> PathBuf {
        dir.join(format!("result-{}", self.name))
    }
}

impl Locked {
    /// Returns whether a program that guards in these hierarchies need was never in a self-test.
    pub fn is_any_untried(&self, hierarchies: Hierarchies) -> bool {
        let is_untried = |program: &Program| {
            let is_attached = program.link_pin(self.dir()).exists();
            program.is_needed(hierarchies) && is_attached && !program.is_tried(self.dir())
        };
        let level = self.level();
        level.is_some_and(|level| programs::at(level).any(is_untried))
    }

    /// Forgets all results: the next guard tests each program again.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn forget_results(&self) -> Result<(), Error> {
        let mut all = PROGRAMS.iter().map(|program| program.result(self.dir()));
        all.try_for_each(|link| remove_if_there(&link))
            .map_err(Error::failed("remove the results of the self-test"))
    }

    /// Keeps the result for the program of this name. A program that the kernel does not call is
    /// detached, and counts as missing from then on: this returns the error for it.
    ///
    /// # Errors
    /// When no guard goes without the program, and when a pin cannot be changed.
    pub fn keep_result(&self, name: &str, result: CallResult) -> Result<Option<Error>, Error> {
        let Some(level) = self.level() else {
            return Ok(None);
        };
        let Some(program) = programs::at(level).find(|program| program.name == name) else {
            return Ok(None);
        };
        let link = program.result(self.dir());
        remove_if_there(&link)
            .and_then(|()| symlink(result.text(), &link))
            .map_err(Error::failed(format!("keep {}", link.display())))?;
        if result != CallResult::NeverCalled {
            return Ok(None);
        }
        program.detach(self.dir())?;
        self.detach_incomplete_moves()?;
        let error = program.never_called(level);
        match program.is_vital() {
            true => Err(error),
            false => Ok(Some(error)),
        }
    }
}
