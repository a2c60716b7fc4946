//! What there is of us while something is measured.

use std::{path::Path, thread};

use freezer_guard::guard;

use super::{
    Error,
    clock::{ALL_SETTLED, SETTLED},
    helper::{Helpers, Part, Waiting},
};

/// What there is of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    None,
    /// A program that does nothing wherever a guard has one.
    Noop,
    /// Our programs, loaded and not attached: what one guard leaves.
    Idle,
    /// The service's watch for checkpointers, and no guard.
    Watch,
    /// So many guards.
    Guards(usize),
    /// What many guards leave.
    After,
}

impl Condition {
    /// Its name in tables and JSON.
    pub(super) fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Noop => "empty".to_owned(),
            Self::Idle => "idle".to_owned(),
            Self::Watch => "watch".to_owned(),
            Self::Guards(count) => format!("guards-{count}"),
            Self::After => "after".to_owned(),
        }
    }

    fn parts(self) -> Vec<Part> {
        match self {
            Self::None | Self::After => Vec::new(),
            Self::Noop => vec![Part::Noop],
            Self::Idle => vec![Part::Idle],
            Self::Watch => vec![Part::Watch],
            // In one process: more would be more children for whom a `wait` looks.
            Self::Guards(count) => vec![Part::Guards(0..count)],
        }
    }
}

/// A condition, for as long as this lives.
pub(super) struct InForce(Option<Helpers>);

impl InForce {
    pub(super) fn new(
        condition: Condition,
        top: &Path,
        waiting: Waiting<'_>,
    ) -> Result<Self, Error> {
        if condition == Condition::After {
            thread::sleep(ALL_SETTLED);
        } else {
            be_alone()?;
        }
        let parts = condition.parts();
        if parts.is_empty() {
            return Ok(Self(None));
        }
        let mut helpers = Helpers::start(parts, top)?;
        helpers.begin(waiting)?;
        Ok(Self(Some(helpers)))
    }

    pub(super) fn end(mut self, waiting: Waiting<'_>) -> Result<(), Error> {
        match &mut self.0 {
            Some(helpers) => helpers.end(waiting).map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        if self.0.take().is_some() {
            thread::sleep(SETTLED);
        }
    }
}

/// Unloads what earlier guards have left loaded.
///
/// # Errors
/// When a guard is in force, or the service runs.
pub(super) fn be_alone() -> Result<(), Error> {
    match guard::unload() {
        Ok(_) => Ok(()),
        Err(guard::Error::InForce(_) | guard::Error::DaemonRuns) => Err(Error::InUse),
        Err(error) => Err(error.into()),
    }
}
