//! The results of a release: which of its guests have passed with the present sources. They stand in
//! the repository, so that a run of many hours can go on later, and on another machine.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use crate::{docs, git, kernel::KERNELS, matrix};

const FILE: &str = "docs/data/release.md";
const BEGIN: &str = "<!-- made by `cargo xtask test --kernel all --resume` -->\n";
/// Stands before the id of the sources.
const SOURCES: &str = "Sources: `";
const HEAD: [&str; 3] = ["guest", "tests passed", "seconds"];

/// The guests that have passed.
pub(crate) struct Release {
    sources: String,
    passed: Mutex<BTreeMap<String, Passed>>,
}

/// What a guest has shown, of which all tests have passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Passed {
    pub(crate) tests: usize,
    pub(crate) seconds: u64,
}

impl Release {
    /// Reads the results. Those of other sources do not count.
    pub(crate) fn open() -> Result<Self> {
        let sources = git::sources()
            .context("--resume skips guests that have passed with the present sources")?;
        let passed = read(&docs::get(FILE, BEGIN)?, &sources);
        Ok(Self {
            sources,
            passed: Mutex::new(passed),
        })
    }

    /// Returns the result of this guest if it has passed.
    pub(crate) fn passed(&self, guest: &str) -> Option<Passed> {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.get(guest).copied()
    }

    /// Adds the result of a guest, and writes all of them.
    pub(crate) fn add(&self, guest: &str, result: Passed) -> Result<()> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.insert(guest.to_owned(), result);
        docs::put(FILE, BEGIN, &text(&labels(), &passed, &self.sources))
    }
}

/// The guests of a release.
fn labels() -> Vec<String> {
    let all: Vec<_> = KERNELS.iter().collect();
    let guests = matrix::release(&all);
    guests.iter().map(matrix::Guest::label).collect()
}

fn text(labels: &[String], passed: &BTreeMap<String, Passed>, sources: &str) -> String {
    let rows = labels.iter().filter_map(|label| {
        let Passed { tests, seconds } = passed.get(label)?;
        let label = format!("`{label}`");
        Some(docs::line(&[label, tests.to_string(), seconds.to_string()]))
    });
    let rows: Vec<_> = rows.collect();
    let tests: usize = passed.values().map(|result| result.tests).sum();
    format!(
        "{SOURCES}{sources}`\n\n{} of {} guests have passed, with {tests} tests.\n\n{}|---|---|---|\n{}",
        rows.len(),
        labels.len(),
        docs::line(&HEAD),
        rows.concat()
    )
}

/// Returns the results in a text if they are of these sources.
fn read(text: &str, sources: &str) -> BTreeMap<String, Passed> {
    if !text.starts_with(&format!("{SOURCES}{sources}`")) {
        return BTreeMap::new();
    }
    let row = |line: &str| {
        let cells: Vec<_> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [guest, tests, seconds, ..] = cells[..] else {
            return None;
        };
        let result = Passed {
            tests: tests.parse().ok()?,
            seconds: seconds.parse().ok()?,
        };
        Some((guest.trim_matches('`').to_owned(), result))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::{BTreeMap, Passed, labels, read, text};

    fn passed() -> BTreeMap<String, Passed> {
        let of = |tests, seconds| Passed { tests, seconds };
        let labels = labels();
        BTreeMap::from([
            (labels[0].clone(), of(9, 70)),
            (labels[2].clone(), of(10, 80)),
        ])
    }

    #[test]
    fn a_run_goes_on_where_it_ended() {
        let written = text(&labels(), &passed(), "abc");
        assert_eq!(read(&written, "abc"), passed());
        assert!(written.contains(" guests have passed, with 19 tests."));
    }

    #[test]
    fn results_of_other_sources_do_not_count() {
        let written = text(&labels(), &passed(), "abc");
        assert_eq!(read(&written, "abcd"), BTreeMap::new());
        assert_eq!(read(&written, "ab"), BTreeMap::new());
        assert_eq!(read("", "abc"), BTreeMap::new());
    }

    #[test]
    fn guests_that_a_release_no_longer_has_are_dropped() {
        let written = text(&labels()[1..], &passed(), "abc");
        assert_eq!(read(&written, "abc").len(), 1);
    }
}
