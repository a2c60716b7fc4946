//! Results of guests in earlier runs: for `--resume`, and to guess how long a run takes.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::build;

/// The result of one guest: a line of the file.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The commit that was tested; `COMMIT-dirty` if something had been changed since.
    commit: String,
    /// The guest's label.
    guest: String,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) seconds: u64,
}

/// The results of earlier runs, the oldest first.
pub(crate) struct History {
    path: PathBuf,
    commit: String,
    entries: Vec<Entry>,
}

impl History {
    /// Reads the file, if there is one.
    pub(crate) fn open() -> Result<Self> {
        let path = build::workspace().join("target/guests.jsonl");
        let text = match path.exists() {
            true => {
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?
            }
            false => String::new(),
        };
        Ok(Self {
            path,
            commit: commit(),
            entries: entries(&text),
        })
    }

    /// The commit that is tested.
    pub(crate) fn commit(&self) -> &str {
        &self.commit
    }

    /// Fails if the work tree differs from its commit.
    pub(crate) fn ensure_clean(&self) -> Result<()> {
        ensure!(
            !self.commit.ends_with(DIRTY),
            "--resume skips guests that have passed at this commit, but the work tree has changes: commit or stash them"
        );
        Ok(())
    }

    /// Returns the result of this guest if it has passed at this commit.
    pub(crate) fn passed(&self, guest: &str) -> Option<&Entry> {
        let mut entries = self.entries.iter().rev();
        entries
            .find(|entry| entry.guest == guest && entry.commit == self.commit)
            .filter(|entry| entry.failed == 0 && entry.passed > 0)
    }

    /// Returns how long this guest took last time, seconds.
    pub(crate) fn seconds(&self, guest: &str) -> Option<u64> {
        let mut entries = self.entries.iter().rev();
        let last = entries.find(|entry| entry.guest == guest);
        last.map(|entry| entry.seconds)
    }

    /// Appends the result of a guest.
    pub(crate) fn add(
        &self,
        guest: &str,
        passed: usize,
        failed: usize,
        seconds: u64,
    ) -> Result<()> {
        let entry = Entry {
            commit: self.commit.clone(),
            guest: guest.to_owned(),
            passed,
            failed,
            seconds,
        };
        let line = serde_json::to_string(&entry)? + "\n";
        File::options()
            .create(true)
            .append(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("write {}", self.path.display()))
    }
}

const DIRTY: &str = "-dirty";

/// Returns the commit of the work tree. Without git the tree counts as changed.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .current_dir(build::workspace())
            .args(arguments)
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let head = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let is_clean = git(&["status", "--porcelain"]).is_some_and(|changes| changes.is_empty());
    let dirty = if is_clean { "" } else { DIRTY };
    format!("{}{dirty}", head.trim())
}

/// Skips half a line: a killed run can leave one.
fn entries(text: &str) -> Vec<Entry> {
    let lines = text.lines();
    lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{DIRTY, History, entries};

    fn history(commit: &str) -> History {
        let text = r#"
{"commit":"old","guest":"6.1","passed":9,"failed":0,"seconds":70}
{"commit":"new","guest":"6.1","passed":9,"failed":1,"seconds":80}
{"commit":"new","guest":"6.12","passed":9,"failed":1,"seconds":50}
{"commit":"new","guest":"6.12","passed":10,"failed":0,"seconds":60}
{"commit":"new","guest":"7.3","passed":0,"failed":0,"seconds":1}
{"commit":"new","gue"#;
        History {
            path: "/nowhere".into(),
            commit: commit.to_owned(),
            entries: entries(text),
        }
    }

    #[test]
    fn skips_what_has_passed_at_this_commit_last() {
        let passed = |commit: &str, guest| {
            let history = history(commit);
            history.passed(guest).map(|entry| entry.passed)
        };
        assert_eq!(passed("new", "6.12"), Some(10));
        assert_eq!(passed("new", "6.1"), None, "failed since");
        assert_eq!(passed("old", "6.1"), Some(9));
        assert_eq!(passed("new", "7.3"), None, "nothing was tested");
        assert_eq!(passed("other", "6.12"), None);
    }

    #[test]
    fn times_are_the_last_ones_of_any_commit() {
        let history = history("other");
        assert_eq!(history.seconds("6.1"), Some(80));
        assert_eq!(history.seconds("6.18"), None);
    }

    #[test]
    fn changes_are_no_commit() {
        assert!(history("new").ensure_clean().is_ok());
        assert!(history(&format!("new{DIRTY}")).ensure_clean().is_err());
    }
}
