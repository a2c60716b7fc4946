//! How far CRIU is.

use std::{
    ffi::OsStr,
    time::{Duration, Instant},
};

use freezer_guard::{
    criu::{Log, Progress},
    words::mebibytes,
};

use crate::cli::guarded::Options;

/// Tells how far CRIU is, in growing distances.
pub(super) struct Watch<'a> {
    /// The name of the tree, if there are several.
    name: String,
    log: Log,
    options: &'a Options,
    /// When it was looked at first: CRIU runs from then on.
    begun: Option<Instant>,
    next: Duration,
    last: (Duration, Progress),
}

impl<'a> Watch<'a> {
    const SHORTEST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(10);

    pub(super) fn new(name: Option<&OsStr>, log: Log, options: &'a Options) -> Self {
        let name = name.map(|name| format!("{}: ", name.display()));
        Self {
            name: name.unwrap_or_default(),
            log,
            options,
            begun: None,
            next: Self::SHORTEST,
            last: (Duration::ZERO, Progress::default()),
        }
    }

    pub(super) fn look(&mut self) {
        let elapsed = self.begun.get_or_insert_with(Instant::now).elapsed();
        if elapsed < self.next {
            return;
        }
        self.next = elapsed + (elapsed / 4).clamp(Self::SHORTEST, Self::LONGEST);
        let now = self.log.progress();
        let (before, then) = std::mem::replace(&mut self.last, (elapsed, now));
        let rate = (now.bytes() - then.bytes()) as f64 / (elapsed - before).as_secs_f64();
        self.options.step(format_args!(
            "{}{} for {:.0} s: {} processes started, {} pages ({}) written, {}/s",
            self.name,
            now.stage.name(),
            elapsed.as_secs_f64(),
            now.processes,
            now.pages,
            mebibytes(now.bytes()),
            mebibytes(rate as u64),
        ));
    }
}
