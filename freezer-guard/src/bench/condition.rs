//! What there is of us while something is measured.

use std::{path::Path, thread, time::Duration};

use super::{
    Error,
    helper::{Helpers, Part, Waiting},
};
use crate::kernel::Locked;

/// What there is of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    None,
    /// A program that does nothing wherever a guard has one.
    Empty,
    /// Our programs, loaded and not attached.
    Idle,
    /// The service's watch for checkpointers, and no guard.
    Watch,
    /// So many guards.
    Guards(usize),
    /// Nothing again.
    After,
}

impl Condition {
    /// Its name in tables and JSON.
    pub(super) fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Empty => "empty".to_owned(),
            Self::Idle => "idle".to_owned(),
            Self::Watch => "watch".to_owned(),
            Self::Guards(count) => format!("guards-{count}"),
            Self::After => "after".to_owned(),
        }
    }

    fn parts(self) -> Vec<Part> {
        match self {
            Self::None | Self::After => Vec::new(),
            Self::Empty => vec![Part::Empty],
            Self::Idle => vec![Part::Idle],
            Self::Watch => vec![Part::Watch],
            Self::Guards(count) => clients(count),
        }
    }
}

/// How many processes begin guards at the same time.
pub(super) const CLIENTS: usize = 64;

/// Shares so many guards out among as many clients as there can be.
pub(super) fn clients(guards: usize) -> Vec<Part> {
    let each = guards.div_ceil(CLIENTS).max(1);
    (0..guards)
        .step_by(each)
        .map(|first| Part::Guards(first..(first + each).min(guards)))
        .collect()
}

/// A condition, for as long as this lives.
pub(super) struct InForce(Option<Helpers>);

impl InForce {
    /// Brings it about. How long that took, once everything had started.
    pub(super) fn new(
        condition: Condition,
        top: &Path,
        waiting: Waiting<'_>,
    ) -> Result<(Self, Duration), Error> {
        be_alone()?;
        if condition == Condition::After {
            thread::sleep(ALL_SETTLED);
        }
        let parts = condition.parts();
        if parts.is_empty() {
            return Ok((Self(None), Duration::ZERO));
        }
        let mut helpers = Helpers::start(parts, top)?;
        let (took, _) = helpers.begin(waiting)?;
        Ok((Self(Some(helpers)), took))
    }

    /// Ends it. How long that took.
    pub(super) fn end(mut self, waiting: Waiting<'_>) -> Result<Duration, Error> {
        match &mut self.0 {
            Some(helpers) => helpers.end(waiting),
            None => Ok(Duration::ZERO),
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

/// # Errors
/// When something of ours is loaded.
pub(super) fn be_alone() -> Result<(), Error> {
    match Locked::wait()?.open()? {
        Some(_) => Err(Error::InUse),
        None => Ok(()),
    }
}

/// How long the kernel may take to detach what nobody refers to any more: it does that
/// in the background, one program after the other. With many guards it takes longer.
const SETTLED: Duration = Duration::from_secs(1);
const ALL_SETTLED: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::{CLIENTS, Part, clients};

    #[test]
    fn every_guard_has_one_client() {
        for guards in [0, 1, 63, 64, 65, 100, 10_000] {
            let parts = clients(guards);
            assert!(parts.len() <= CLIENTS);
            let numbers = parts.into_iter().flat_map(|part| match part {
                Part::Guards(which) => which,
                _ => 0..0,
            });
            assert!(numbers.eq(0..guards));
        }
    }
}
