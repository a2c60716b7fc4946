//! `--wait`: until guards of others have ended.

use std::time::{Duration, Instant};

use freezer_guard::guard::chain;

use super::{Options, Signals};
use crate::cli::error::{Error, Result};

/// The time between two attempts to begin a guard.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a guard that is in the way may last.
pub(super) struct Waiting {
    /// The last moment; `None`: without a limit.
    until: Option<Instant>,
    is_wanted: bool,
    has_said: bool,
}

impl Waiting {
    pub(super) fn of(options: &Options) -> Self {
        let limit = options.wait.flatten();
        Self {
            // A limit beyond what the clock can show is none.
            until: limit.and_then(|limit| Instant::now().checked_add(limit)),
            is_wanted: options.wait.is_some(),
            has_said: false,
        }
    }

    /// Waits for the next attempt, unless the error lasts or the time is up: then it is returned.
    pub(super) async fn wait_or_fail(
        &mut self,
        error: Error,
        options: &Options,
        signals: &mut Signals,
    ) -> Result<()> {
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        if !self.is_wanted || is_late || !error.ends_with_other_guards() {
            return Err(error);
        }
        if !self.has_said {
            options.step(format_args!("waiting: {}", chain(&error)));
            self.has_said = true;
        }
        let left = self
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = tokio::time::sleep(left.map_or(AGAIN, |left| left.min(AGAIN))) => Ok(()),
            signal = signals.next_end() => Err(Error::Interrupted(signal?)),
        }
    }
}
