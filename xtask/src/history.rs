//! How long guests took in earlier runs, to guess how long a run takes.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::build;

/// One guest: a line of the file.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// The guest's label.
    guest: String,
    seconds: u64,
}

/// The guests of earlier runs, the oldest first.
pub(crate) struct History {
    path: PathBuf,
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
        let entries = entries(&text);
        Ok(Self { path, entries })
    }

    /// Returns how long this guest took last time, seconds.
    pub(crate) fn seconds(&self, guest: &str) -> Option<u64> {
        let mut entries = self.entries.iter().rev();
        let last = entries.find(|entry| entry.guest == guest);
        last.map(|entry| entry.seconds)
    }

    /// Appends a guest.
    pub(crate) fn add(&self, guest: &str, seconds: u64) -> Result<()> {
        let guest = guest.to_owned();
        let entry = Entry { guest, seconds };
        let line = serde_json::to_string(&entry)? + "\n";
        File::options()
            .create(true)
            .append(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("write {}", self.path.display()))
    }
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
    use super::{History, entries};

    #[test]
    fn times_are_the_last_ones() {
        let text = r#"
{"guest":"6.1","seconds":70}
{"guest":"6.1","seconds":80}
{"guest":"6.12","seconds":60}
{"gue"#;
        let history = History {
            path: "/nowhere".into(),
            entries: entries(text),
        };
        assert_eq!(history.seconds("6.1"), Some(80));
        assert_eq!(history.seconds("6.18"), None);
    }
}
