//! CHANGELOG.md in the formats of Debian and of RPM.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{VERSION, manifest::Manifest, time};
use crate::build::workspace;

/// A release, with its changes.
struct Release {
    version: String,
    /// Seconds since 1970.
    time: String,
    changes: Vec<String>,
}

/// Both changelogs.
pub(super) struct Changelogs {
    pub(super) debian: String,
    pub(super) rpm: String,
}

impl Changelogs {
    /// `time`: of the commit, in seconds since 1970.
    pub(super) fn read(time: &str) -> Result<Self> {
        let text =
            fs::read_to_string(workspace().join("CHANGELOG.md")).context("read CHANGELOG.md")?;
        let releases = releases(&text, time)?;
        let maintainer = Manifest::read()?.maintainer;
        let mut logs = Self {
            debian: String::new(),
            rpm: String::new(),
        };
        for release in releases {
            let Release {
                version,
                time: at,
                changes,
            } = release;
            let changes = |indent: &str, bullet: &str| -> String {
                let lines = changes.iter().map(|change| wrap(change, indent, bullet));
                lines.collect()
            };
            let stamp = time::format(&at, "+%a, %d %b %Y %H:%M:%S +0000")?;
            logs.debian += &format!(
                "freezer-guard ({version}) unstable; urgency=medium\n\n{}\n -- {maintainer}  {stamp}\n\n",
                changes("    ", "  * ")
            );
            let stamp = time::format(&at, "+%a %b %d %Y")?;
            logs.rpm += &format!(
                "* {stamp} {maintainer} - {version}-1\n{}\n",
                changes("  ", "- ")
            );
        }
        Ok(logs)
    }
}

/// Reads `## [VERSION] - DATE` with `### Added` and a list below. "Unreleased" is the version that
/// is being made.
fn releases(text: &str, time: &str) -> Result<Vec<Release>> {
    let mut releases: Vec<Release> = Vec::new();
    let mut kind = "";
    let mut is_open = false;
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("## ") {
            releases.push(release(head, time)?);
            is_open = false;
            continue;
        }
        let Some(release) = releases.last_mut() else {
            continue;
        };
        if let Some(name) = line.strip_prefix("### ") {
            kind = name.trim();
            is_open = false;
        } else if let Some(change) = line.strip_prefix("- ") {
            release.changes.push(format!("{kind}: {}", change.trim()));
            is_open = true;
        } else if line.trim().is_empty() {
            is_open = false;
        } else if let Some(change) = release.changes.last_mut().filter(|_| is_open) {
            *change += " ";
            *change += line.trim();
        }
    }
    releases.retain(|release| !release.changes.is_empty());
    ensure!(!releases.is_empty(), "CHANGELOG.md has no changes");
    Ok(releases)
}

fn release(head: &str, time: &str) -> Result<Release> {
    let changes = Vec::new();
    let Some((version, day)) = head.split_once(" - ") else {
        let version = VERSION.to_owned();
        let time = time.to_owned();
        return Ok(Release {
            version,
            time,
            changes,
        });
    };
    let version = version.trim().trim_matches(['[', ']']).to_owned();
    let time = time::of_day(day.trim()).context("read CHANGELOG.md")?;
    Ok(Release {
        version,
        time,
        changes,
    })
}

/// Breaks a text into lines of at most 79 characters.
fn wrap(text: &str, indent: &str, bullet: &str) -> String {
    let mut all = String::new();
    let mut line = bullet.to_owned();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > 79 {
            all += line.trim_end();
            all.push('\n');
            line = indent.to_owned();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    all + line.trim_end() + "\n"
}

#[cfg(test)]
mod tests {
    use super::{releases, wrap};

    #[test]
    fn every_change_of_every_release_is_read() {
        let text = "# Changelog\n\nWords.\n\n## Unreleased\n\n### Added\n\n- One\n  and a half.\n- Two.\n\n\
                    ## [0.0.9] - 1970-01-02\n\n### Fixed\n\n- Three.\n";
        let releases = releases(text, "1000000").expect("it has changes");
        let shown: Vec<_> = releases
            .iter()
            .map(|release| {
                (
                    release.version != "0.0.9",
                    &*release.time,
                    &release.changes[..],
                )
            })
            .collect();
        let first = [
            "Added: One and a half.".to_owned(),
            "Added: Two.".to_owned(),
        ];
        let second = ["Fixed: Three.".to_owned()];
        assert_eq!(
            shown,
            [(true, "1000000", &first[..]), (false, "86400", &second[..])]
        );
    }

    #[test]
    fn long_changes_are_broken() {
        let text = "word ".repeat(40);
        let lines = wrap(&text, "    ", "  * ");
        assert!(lines.lines().all(|line| line.len() <= 79), "{lines}");
        assert!(lines.starts_with("  * word word") && lines.contains("\n    word"));
    }
}
