//! The results of a release: which of its guests have passed with the present sources. They stand in
//! the repository, so that a run of many hours can go on later, and on another machine.

use std::{collections::BTreeMap, fs::File};

use anyhow::{Context as _, Result, ensure};

use crate::{build, docs, git, kernel::KERNELS, matrix};

const FILE: &str = "docs/data/release.md";
const BEGIN: &str = "<!-- made by `cargo xtask test --kernel all --resume` -->\n";
/// Stands before the digest of the sources.
const SOURCES: &str = "Sources: `";
const HEAD: [&str; 3] = ["guest", "tests passed", "seconds"];

/// The guests that have passed, by their labels.
type Table = BTreeMap<String, Passed>;

/// What a guest has shown, of which all tests have passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Passed {
    pub(crate) tests: usize,
    pub(crate) seconds: u64,
}

/// The results that count, in the table.
pub(crate) struct Release {
    sources: String,
    passed: Table,
}

impl Release {
    /// Reads the results. Those of other sources do not count.
    pub(crate) fn open() -> Result<Self> {
        let sources = git::sources()
            .context("--resume skips guests that have passed with the present sources")?;
        let passed = read(&docs::get(FILE, BEGIN)?, &sources);
        Ok(Self { sources, passed })
    }

    /// Returns the result of this guest if it has passed.
    pub(crate) fn passed(&self, guest: &str) -> Option<Passed> {
        self.passed.get(guest).copied()
    }

    /// Adds the result of a guest to the table, where another run may have put its own meanwhile. Fails
    /// if the sources have changed since the begin: nobody knows which of them the guest has tested.
    pub(crate) fn add(&self, guest: &str, result: Passed) -> Result<()> {
        let is_same = git::sources().is_ok_and(|sources| sources == self.sources);
        ensure!(
            is_same,
            "the sources have changed since this run began: begin it anew, in a clone that nobody works in"
        );
        let lock = File::create(build::target_dir().join("release.lock"))?;
        lock.lock().context("lock target/release.lock")?;
        let mut passed = read(&docs::get(FILE, BEGIN)?, &self.sources);
        passed.insert(guest.to_owned(), result);
        docs::put(FILE, BEGIN, &text(&labels(), &passed, &self.sources))
    }
}

/// The guests of a release.
pub(crate) fn labels() -> Vec<String> {
    let all: Vec<_> = KERNELS.iter().collect();
    let guests = matrix::release(&all);
    guests.iter().map(matrix::Guest::label).collect()
}

fn text(labels: &[String], passed: &Table, sources: &str) -> String {
    let rows = labels.iter().filter_map(|label| {
        let result = passed.get(label)?;
        Some((label, *result))
    });
    let rows: Vec<_> = rows.collect();
    let tests: usize = rows.iter().map(|(_, result)| result.tests).sum();
    let lines = rows.iter().map(|(label, Passed { tests, seconds })| {
        docs::line(&[format!("`{label}`"), tests.to_string(), seconds.to_string()])
    });
    format!(
        "{SOURCES}{sources}`\n\n{} of {} guests have passed, with {tests} tests.\n\n{}|---|---|---|\n{}",
        rows.len(),
        labels.len(),
        docs::line(&HEAD),
        lines.collect::<String>()
    )
}

/// Returns the results in a text if they are of these sources.
fn read(text: &str, sources: &str) -> Table {
    if !text.starts_with(&format!("{SOURCES}{sources}`")) {
        return Table::new();
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
    use super::{Passed, Table, labels, read, text};

    fn passed() -> Table {
        let of = |tests, seconds| Passed { tests, seconds };
        let labels = labels();
        Table::from([
            (labels[0].clone(), of(9, 70)),
            (labels[2].clone(), of(10, 80)),
        ])
    }

    #[test]
    fn a_run_goes_on_where_it_ended() {
        let written = text(&labels(), &passed(), "abc");
        assert_eq!(read(&written, "abc"), passed());
        assert!(written.contains("\n2 of "));
        assert!(written.contains(" guests have passed, with 19 tests."));
    }

    #[test]
    fn results_of_other_sources_do_not_count() {
        let written = text(&labels(), &passed(), "abc");
        assert_eq!(read(&written, "abcd"), Table::new());
        assert_eq!(read(&written, "ab"), Table::new());
        assert_eq!(read("", "abc"), Table::new());
    }

    #[test]
    fn guests_that_a_release_no_longer_has_are_dropped() {
        let written = text(&labels()[1..], &passed(), "abc");
        assert_eq!(read(&written, "abc").len(), 1);
        assert!(written.contains("\n1 of "));
        assert!(written.contains(" with 10 tests."));
    }
}
