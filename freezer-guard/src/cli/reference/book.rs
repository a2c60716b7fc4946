//! The chapters of the book in `docs/reference`, and the table of differences in `docs/kernels.md`. Some have text of their own around the
//! generated parts, which stand between two marks.

use std::{fs, path::Path};

use clap::Command;
use freezer_guard::quirks::QUIRKS;

use super::{File, markdown, schemas};
use crate::{
    cli::{
        error::{Error, Result},
        exit::MEANINGS,
    },
    daemon::{config::keys, metrics, varlink},
};

/// Where the chapters are.
const DIR: &str = "docs";

/// A generated part.
struct Part {
    chapter: &'static str,
    name: &'static str,
    make: fn() -> String,
}

const PARTS: [Part; 9] = [
    Part {
        chapter: "reference/exit-codes.md",
        name: "exit-codes",
        make: exit_codes,
    },
    Part {
        chapter: "reference/json.md",
        name: "objects",
        make: schemas::tables,
    },
    Part {
        chapter: "reference/events.md",
        name: "kinds",
        make: schemas::event_kinds,
    },
    Part {
        chapter: "reference/events.md",
        name: "fields",
        make: schemas::event_fields,
    },
    Part {
        chapter: "reference/varlink.md",
        name: "interface",
        make: interface,
    },
    Part {
        chapter: "reference/configuration.md",
        name: "keys",
        make: configuration,
    },
    Part {
        chapter: "reference/configuration.md",
        name: "file",
        make: configuration_file,
    },
    Part {
        chapter: "reference/metrics.md",
        name: "metrics",
        make: metrics,
    },
    Part {
        chapter: "kernels.md",
        name: "quirks",
        make: quirks,
    },
];

/// Returns the chapters, with their parts as they should be.
pub(super) fn chapters(command: &Command, root: &Path) -> Result<Vec<File>> {
    let dir = Path::new(DIR);
    let mut chapters = vec![(
        dir.join("reference/commands.md"),
        markdown::commands(command)?,
    )];
    for part in &PARTS {
        let path = dir.join(part.chapter);
        let index = chapters.iter().position(|(known, _)| *known == path);
        let index = match index {
            Some(index) => index,
            None => {
                let text = fs::read_to_string(root.join(&path))
                    .map_err(Error::io(format!("read {}", path.display())))?;
                chapters.push((path, text));
                chapters.len() - 1
            }
        };
        let (path, text) = &mut chapters[index];
        *text = part.put(path, text)?;
    }
    Ok(chapters)
}

impl Part {
    /// Replaces this part of a chapter.
    fn put(&self, path: &Path, text: &str) -> Result<String> {
        const END: &str = "<!-- end -->";
        let begin = format!("<!-- begin: {} -->", self.name);
        let parts = text.split_once(&begin).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(END)?;
            Some((before, after))
        });
        let (before, after) = parts.ok_or_else(|| {
            Error::Unexpected(format!("{} has no {begin} … {END}", path.display()))
        })?;
        let part = (self.make)();
        Ok(format!(
            "{before}{begin}\n\n{}\n\n{END}{after}",
            part.trim_end()
        ))
    }
}

fn exit_codes() -> String {
    let mut table = "| code | cause | what to do |\n|---|---|---|\n".to_owned();
    for meaning in &MEANINGS {
        table += &format!(
            "| {} | {} | {} |\n",
            meaning.code.0, meaning.cause, meaning.remedy
        );
    }
    table
}

fn quirks() -> String {
    let mut table =
        "| difference | kernels or versions | recognised by | effect |\n|---|---|---|---|\n"
            .to_owned();
    for quirk in &QUIRKS {
        table += &format!(
            "| {} | {} | {} | {} |\n",
            quirk.difference, quirk.since, quirk.recognised, quirk.effect
        );
    }
    table
}

fn interface() -> String {
    format!("```varlink\n{}```\n", varlink::description())
}

fn configuration() -> String {
    let mut table =
        "| key | type | default | example | meaning |\n|---|---|---|---|---|\n".to_owned();
    for key in keys::keys() {
        table += &format!(
            "| `{}` | {} | `{}` | `{}` | {} |\n",
            key.path(),
            key.kind,
            key.default,
            key.example,
            key.text
        );
    }
    table
}

fn configuration_file() -> String {
    format!("```toml\n{}```\n", keys::installed_file())
}

/// Reads the metrics out of the text that a monitoring system gets.
fn metrics() -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    let text = metrics::description();
    let mut help = "";
    for line in text.lines() {
        if let Some((_, meaning)) = line
            .strip_prefix("# HELP ")
            .and_then(|line| line.split_once(' '))
        {
            help = meaning;
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|line| line.split_once(' '))
        {
            let samples = text.lines().filter_map(|line| line.strip_prefix(name));
            let mut labels: Vec<_> = samples
                .filter_map(|sample| sample.strip_prefix('{')?.split_once('}'))
                .map(|(labels, _)| format!("`{labels}`"))
                .collect();
            labels.sort();
            table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
        }
    }
    table
}
