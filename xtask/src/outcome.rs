//! Results of tests: counts, failures, times and rows for `docs/`.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Deserialize;

use crate::{matrix::Guest, report::Report};

/// Counts of tests.
#[derive(Default)]
pub(crate) struct Sum {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// The report of libtest on failures. The runner repeats it at the end: the log of many
    /// guests is long, and often only its end is kept.
    pub(crate) failures: Vec<String>,
    in_failures: bool,
}

impl Sum {
    /// Adds a failure that no test has reported.
    pub(crate) fn add_failure(&mut self, complaint: String) {
        self.failed += 1;
        self.failures.push(complaint);
    }

    /// Adds the counts of another one. Its failures get this label.
    pub(crate) fn add(&mut self, other: Self, label: &str) {
        self.passed += other.passed;
        self.failed += other.failed;
        let failures = other.failures.into_iter();
        self.failures
            .extend(failures.map(|line| format!("{label}: {line}")));
    }

    /// Adds a line of libtest; returns whether it is a `test result:` line.
    pub(crate) fn add_line(&mut self, line: &str) -> bool {
        let Some((_, result)) = line.split_once("test result: ") else {
            self.in_failures |= line.trim_end() == "failures:";
            if self.in_failures && !line.trim().is_empty() {
                self.failures.push(line.to_owned());
            }
            return false;
        };
        self.in_failures = false;
        let count = |word: &str| {
            let mut words = result
                .split([' ', ';', '.'])
                .filter(|part| !part.is_empty());
            let mut last = "";
            let found = words.find_map(|part| {
                let number = (part == word).then(|| last.parse().ok()).flatten();
                last = part;
                number
            });
            found.unwrap_or(0)
        };
        self.passed += count("passed");
        self.failed += count("failed");
        true
    }
}

/// A slow test.
#[derive(Debug, PartialEq)]
pub(crate) struct Slow {
    pub(crate) seconds: f64,
    pub(crate) test: String,
}

impl Slow {
    /// The slow test in a line of output, if there is one.
    fn in_line(line: &str) -> Option<Self> {
        let (seconds, test) = line.strip_prefix("took ")?.split_once(" s: ")?;
        Some(Self {
            seconds: seconds.parse().ok()?,
            test: test.to_owned(),
        })
    }
}

/// A row of a table of `docs/` that a test has printed.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    pub(crate) table: String,
    pub(crate) cells: Vec<String>,
}

impl Row {
    /// Stands before the JSON in what the integration tests write.
    const MARK: &str = "runtimes: ";

    /// The row in a line of output, if there is one.
    fn in_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(Self::MARK)?).ok()
    }
}

/// The results of one guest.
pub(crate) struct Outcome {
    pub(crate) guest: Guest,
    pub(crate) sum: Sum,
    pub(crate) took: Duration,
    pub(crate) slow: Vec<Slow>,
    /// The report of `doctor` in it.
    pub(crate) report: Option<Report>,
    /// The rows of its tests for tables.
    pub(crate) rows: Vec<Row>,
}

/// Reads the output of a guest.
pub(crate) struct Reading {
    outcome: Outcome,
    start: Instant,
    has_result: bool,
    /// The last test that began.
    last: String,
}

impl Reading {
    pub(crate) fn of(guest: &Guest) -> Self {
        let outcome = Outcome {
            guest: guest.clone(),
            sum: Sum::default(),
            took: Duration::ZERO,
            slow: Vec::new(),
            report: None,
            rows: Vec::new(),
        };
        Self {
            outcome,
            start: Instant::now(),
            has_result: false,
            last: String::new(),
        }
    }

    /// Reads a line; returns whether to show it.
    pub(crate) fn add_line(&mut self, line: &str) -> bool {
        let outcome = &mut self.outcome;
        self.has_result |= outcome.sum.add_line(line);
        if line.starts_with("test ") {
            line.clone_into(&mut self.last);
        }
        outcome.rows.extend(Row::in_line(line));
        outcome.slow.extend(Slow::in_line(line));
        let report = Report::in_line(line);
        let is_report = report.is_some();
        outcome.report = outcome.report.take().or(report);
        !is_report
    }

    /// The guest has ended with this exit code. A guest without a result counts as one
    /// failure.
    pub(crate) fn end(mut self, ended: Result<i32>) -> Outcome {
        let (sum, last) = (&mut self.outcome.sum, self.last);
        let complaint = match ended {
            Err(error) => Some(format!("{error:#}; the last test was: {last}")),
            Ok(code) if !self.has_result => Some(format!(
                "ended with {code} and without a result; the last test was: {last}"
            )),
            Ok(code) if code != 0 && sum.failed == 0 => Some(format!("ended with {code}")),
            Ok(_) => None,
        };
        if let Some(complaint) = complaint {
            sum.add_failure(complaint);
        }
        self.outcome.took = self.start.elapsed();
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::{Reading, Slow, Sum};
    use crate::{kernel::KERNELS, matrix};

    #[test]
    fn sums_up_result_lines() {
        let mut sum = Sum::default();
        assert!(!sum.add_line("test v1::dump::thawed ... ok"));
        assert!(sum.add_line("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured"));
        assert!(sum.add_line("test result: FAILED. 12 passed; 2 failed; 0 ignored"));
        assert_eq!((sum.passed, sum.failed), (15, 2));
    }

    #[test]
    fn keeps_what_is_said_of_failures() {
        let mut guest = Sum::default();
        let failures = ["failures:", "", "---- thawed ----", "left: 1"];
        for line in ["test thawed ... FAILED"].iter().chain(&failures) {
            guest.add_line(line);
        }
        assert!(guest.add_line("test result: FAILED. 0 passed; 1 failed"));
        guest.add_line("[    4.2] reboot: Power down");
        let mut sum = Sum::default();
        sum.add(guest, "6.1");
        assert_eq!(sum.failed, 1);
        assert_eq!(
            sum.failures,
            ["6.1: failures:", "6.1: ---- thawed ----", "6.1: left: 1"]
        );
    }

    #[test]
    fn reads_how_long_a_test_took() {
        let slow = Slow {
            seconds: 12.5,
            test: "v2::dump::window".to_owned(),
        };
        assert_eq!(Slow::in_line("took 12.5 s: v2::dump::window"), Some(slow));
        assert_eq!(Slow::in_line("it took 12.5 s: v2::dump::window"), None);
    }

    #[test]
    fn a_guest_without_a_result_has_failed() {
        let guests = matrix::release(&[&KERNELS[0]]);
        let failures = |lines: &[&str], ended| {
            let mut reading = Reading::of(&guests[0]);
            for line in lines {
                reading.add_line(line);
            }
            reading.end(ended).sum.failed
        };
        let passed = "test result: ok. 3 passed; 0 failed";
        assert_eq!(failures(&[passed], Ok(0)), 0);
        assert_eq!(failures(&[passed], Ok(1)), 1);
        assert_eq!(failures(&[], Ok(0)), 1);
        assert_eq!(failures(&[passed], Err(anyhow::anyhow!("panic"))), 1);
    }
}
