//! A step of the set-up.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, ensure};

/// A step of the set-up, done once.
pub(super) struct Step {
    name: String,
    pub(super) there: Box<dyn Fn() -> bool + Send>,
    fetch: Box<dyn Fn() -> Result<()> + Send>,
}

impl Step {
    pub(super) fn new(
        name: impl Into<String>,
        there: impl Fn() -> bool + Send + 'static,
        fetch: impl Fn() -> Result<()> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            there: Box::new(there),
            fetch: Box::new(fetch),
        }
    }

    /// A step that makes this file or directory.
    pub(super) fn file(
        name: impl Into<String>,
        path: PathBuf,
        fetch: impl Fn() -> Result<()> + Send + 'static,
    ) -> Self {
        Self::new(name, move || path.exists(), fetch)
    }

    pub(super) fn take(&self) -> Result<()> {
        let name = &self.name;
        if (self.there)() {
            eprintln!("{name}: already there");
            return Ok(());
        }
        eprintln!("{name} …");
        let start = Instant::now();
        (self.fetch)().with_context(|| format!("set-up of {name}"))?;
        ensure!(
            (self.there)(),
            "{name}: the set-up has finished, but the result is missing"
        );
        eprintln!("{name}: done in {} s", start.elapsed().as_secs());
        Ok(())
    }
}
