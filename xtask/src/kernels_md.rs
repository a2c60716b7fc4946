//! The table of `docs/kernels.md`, made from what the guests have shown.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{build, test::Outcome};

const BEGIN: &str = "<!-- made by `cargo xtask test doctor::tells --kernel all --docs` -->\n";
const END: &str = "<!-- end -->\n";
const PROTECTIONS: [&str; 4] = ["freeze", "kill", "migrate", "ptrace"];

fn path() -> PathBuf {
    build::workspace().join("docs/kernels.md")
}

/// Puts the table into the file.
pub(crate) fn write(outcomes: &[Outcome]) -> Result<()> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (before, rest) = text
        .split_once(BEGIN)
        .context("docs/kernels.md has no begin mark")?;
    let (_, after) = rest
        .split_once(END)
        .context("docs/kernels.md has no end mark")?;
    let mut outcomes: Vec<_> = outcomes.iter().collect();
    outcomes.sort_by_key(|outcome| outcome.order());
    let mut rows: Vec<_> = outcomes.into_iter().filter_map(row).collect();
    rows.dedup();
    let head = format!("| kernel | boot parameters | {} |", PROTECTIONS.join(" | "));
    let table = format!("\n{head}\n|---|---|---|---|---|---|\n{}", rows.concat());
    fs::write(&path, format!("{before}{BEGIN}{table}\n{END}{after}"))
        .with_context(|| format!("write {}", path.display()))
}

/// What the file says otherwise than the guests do.
pub(crate) fn compare(outcomes: &[Outcome]) -> Result<Vec<String>> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(outcomes
        .iter()
        .filter_map(row)
        .filter(|row| !text.contains(row))
        .map(|row| format!("docs/kernels.md does not say: {}", row.trim()))
        .collect())
}

/// How far each protection goes in a guest.
fn row(outcome: &Outcome) -> Option<String> {
    let report = outcome.report.as_ref()?;
    let mut row = format!("| {} | {} |", outcome.kernel, outcome.boot);
    for protection in PROTECTIONS {
        let level = report
            .levels
            .as_ref()
            .and_then(|levels| levels.get(protection));
        row += &format!(" {} |", level.map_or("nothing", String::as_str));
    }
    Some(row + "\n")
}
