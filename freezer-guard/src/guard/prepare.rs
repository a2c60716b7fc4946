//! From the mark to CHECKPOINTING: freeze, verify, and begin again when somebody
//! has disturbed that, for instance by a write that was under way.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use freezer_guard_abi::GuardEntry;

use super::{Before, Error, Guard, Incident, now};
use crate::cgroup::Report;

/// The pause after the first look whether the freezer is done, and the longest: each pause is
/// twice as long as the one before. Most cgroups freeze in less than a millisecond.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// What has to be done before CHECKPOINTING.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// Freeze what is thawed.
    pub freeze: bool,
    /// How long that may take.
    pub timeout: Duration,
    /// The roots of the trees that have to be in the targets.
    pub roots: Vec<i32>,
}

impl Guard {
    /// Brings the guard to CHECKPOINTING. Meanwhile `progress` is called again and
    /// again, with what made us begin anew, if something did; it may give up.
    ///
    /// # Errors
    /// Those of [`Guard::freeze`], [`Guard::verify`], [`Guard::checkpointing`] and
    /// `progress`; when the targets do not freeze in time.
    pub fn prepare<E: From<Error>>(
        &mut self,
        how: &Preparation,
        mut progress: impl FnMut(&[Incident]) -> Result<(), E>,
    ) -> Result<Report, E> {
        let deadline = Instant::now() + how.timeout;
        loop {
            progress(&[])?;
            // Before the freeze, since it may have to wait for the lock.
            self.surround()?;
            let before = self.before()?;
            self.freeze(how.freeze)?;
            self.wait_frozen(how, before, deadline, &mut progress)?;
            self.frozen_ns = Some(now());
            let report = self.verify(&how.roots)?;
            // Tasks may have come since.
            self.surround()?;
            if self.entry()?.flags & GuardEntry::UNPROVEN != 0 {
                return Err(Error::NotCalled(self.path()).into());
            }
            let Some(incidents) = self.checkpointing(before)? else {
                return Ok(report);
            };
            if Instant::now() >= deadline {
                return Err(self.disturbed(&incidents).into());
            }
            progress(&incidents)?;
        }
    }

    /// Returns early when somebody disturbs it: then it may never be frozen.
    fn wait_frozen<E: From<Error>>(
        &self,
        how: &Preparation,
        before: Before,
        deadline: Instant,
        progress: &mut impl FnMut(&[Incident]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pause = FIRST_PAUSE;
        loop {
            let pending = self.not_frozen()?;
            let Some(cgroup) = pending.first() else {
                return Ok(());
            };
            if self.is_disturbed(before)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::DidNotFreeze {
                    path: cgroup.path().to_owned(),
                    after: how.timeout,
                    tasks: cgroup.not_frozen().map_err(Error::from)?,
                }
                .into());
            }
            sleep(pause);
            pause = LONGEST_PAUSE.min(2 * pause);
            progress(&[])?;
        }
    }
}
