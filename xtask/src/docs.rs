//! The tables of `docs/`, made from what the guests have shown.

use std::{fs, io::Write as _};

use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

use crate::{build, outcome::Outcome};

const PROTECTIONS: [&str; 4] = ["freeze", "kill", "migrate", "ptrace"];
const END: &str = "<!-- end -->\n";

/// A table in one of the files, between a mark of its own and [`END`].
struct Table {
    file: &'static str,
    begin: &'static str,
    head: &'static [&'static str],
    rows: fn(&Outcome) -> Vec<Vec<String>>,
    /// How many of a row's cells say what it is about.
    key: usize,
    /// How many of a row's cells every run has to agree with; the rest depends on who
    /// was quicker, or on Debian. No run has to agree with a table of 0.
    certain: usize,
}

const TABLES: [Table; 5] = [
    Table {
        file: "docs/kernels.md",
        begin: "<!-- made by `cargo xtask test doctor::tells --kernel all --docs` -->\n",
        head: &[
            "kernel",
            "boot parameters",
            "freeze",
            "kill",
            "migrate",
            "ptrace",
        ],
        rows: |outcome| levels(outcome).into_iter().collect(),
        key: 2,
        certain: 6,
    },
    Table {
        file: "docs/data/engines.md",
        begin: "<!-- life: made by `cargo xtask test engines:: --kernel all --docs` -->\n",
        head: &[
            "guest",
            "engine",
            "guard",
            "left running",
            "pre-dump, then the rest",
            "of a paused one",
            "and restore",
            "and once more",
            "versions",
        ],
        rows: |outcome| engines(outcome, "life"),
        key: 3,
        certain: 8,
    },
    Table {
        file: "docs/data/engines.md",
        begin: "<!-- trouble: made by `cargo xtask test engines:: --kernel all --docs` -->\n",
        head: &["guest", "engine", "guard", "attempt", "outcome", "message"],
        rows: |outcome| engines(outcome, "trouble"),
        key: 4,
        certain: 4,
    },
    Table {
        file: "docs/data/engines.md",
        begin: "<!-- bare: made by `cargo xtask test engines:: --kernel all --docs` -->\n",
        head: &[
            "guest",
            "engine",
            "attempt",
            "outcome",
            "checkpoint",
            "message",
        ],
        rows: |outcome| engines(outcome, "bare"),
        key: 3,
        certain: 0,
    },
    Table {
        file: "docs/data/engines.md",
        begin: "<!-- ends: made by `cargo xtask test engines:: --kernel all --docs` -->\n",
        head: &[
            "guest",
            "engine",
            "guard",
            "attempt",
            "outcome",
            "checkpoint",
            "container",
        ],
        rows: |outcome| engines(outcome, "ends"),
        key: 4,
        certain: 0,
    },
];

/// Puts the rows of a guest into the tables of their files, where a table may have rows of other
/// guests.
pub(crate) fn write(outcome: &Outcome) -> Result<()> {
    for table in &TABLES {
        let rows = (table.rows)(outcome);
        if rows.is_empty() {
            continue;
        }
        let earlier = get(table.file, table.begin)?;
        let rows = merge(&earlier, rows, table.key);
        let head = line(table.head) + "|" + &"---|".repeat(table.head.len());
        put(
            table.file,
            table.begin,
            &format!("{head}\n{}", rows.concat()),
        )?;
    }
    Ok(())
}

/// Returns the lines of a table with these rows in it. A row takes the place of the one with the
/// same key; a row with a new key comes after the rows that share most of it.
fn merge(earlier: &str, rows: Vec<Vec<String>>, key: usize) -> Vec<String> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim().trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    // After the heading and the line below it.
    let mut all: Vec<_> = earlier.lines().skip(2).map(cells).collect();
    for row in rows {
        let shared = |other: &Vec<String>| {
            let pairs = row.iter().zip(other).take(key);
            pairs.take_while(|(one, other)| one == other).count()
        };
        if let Some(same) = all.iter_mut().find(|other| shared(other) == key) {
            *same = row;
            continue;
        }
        let most = all.iter().map(shared).max().unwrap_or_default();
        let last = all.iter().rposition(|other| shared(other) == most);
        let place = match most {
            0 => all.len(),
            _ => last.map_or(all.len(), |last| last + 1),
        };
        all.insert(place, row);
    }
    all.iter().map(|cells| line(cells)).collect()
}

/// Puts something into a file, between a mark of its own and [`END`].
pub(crate) fn put(name: &str, begin: &str, what: &str) -> Result<()> {
    let path = build::workspace().join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
    let (before, rest) = text
        .split_once(begin)
        .with_context(|| format!("{name} lacks the line before the table: {begin}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{name} lacks the line after the table: {END}"))?;
    // A run that is killed leaves all of it, or all of what was there before.
    let dir = path.parent().context("a file is in a directory")?;
    let mut file = NamedTempFile::new_in(dir).with_context(|| format!("write beside {name}"))?;
    write!(file, "{before}{begin}\n{what}\n{END}{after}")?;
    fs::set_permissions(file.path(), fs::metadata(&path)?.permissions())?;
    file.persist(&path)
        .with_context(|| format!("write {name}"))?;
    Ok(())
}

/// Returns what a file has between a mark of its own and [`END`].
pub(crate) fn get(name: &str, begin: &str) -> Result<String> {
    let path = build::workspace().join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
    let (_, rest) = text
        .split_once(begin)
        .with_context(|| format!("{name} lacks the line before the table: {begin}"))?;
    let (table, _) = rest
        .split_once(END)
        .with_context(|| format!("{name} lacks the line after the table: {END}"))?;
    Ok(table.trim().to_owned())
}

/// Returns a sentence for each row of the guest that a file lacks.
pub(crate) fn compare(outcome: &Outcome) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for table in TABLES.iter().filter(|table| table.certain > 0) {
        let text = table.text()?;
        let rows = (table.rows)(outcome).into_iter();
        let lines = rows.map(|cells| line(&cells[..table.certain.min(cells.len())]));
        let missing = lines.filter(|line| !text.contains(line.trim_end()));
        complaints.extend(missing.map(|line| format!("{} lacks this row: {line}", table.file)));
    }
    Ok(complaints)
}

impl Table {
    fn text(&self) -> Result<String> {
        let path = build::workspace().join(self.file);
        fs::read_to_string(path).with_context(|| format!("read {}", self.file))
    }
}

pub(crate) fn line<T: AsRef<str>>(cells: &[T]) -> String {
    let cells: Vec<_> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// How far each protection goes in a guest.
fn levels(outcome: &Outcome) -> Option<Vec<String>> {
    let report = outcome.report.as_ref()?;
    let level = |protection: &str| {
        let levels = report.levels.as_ref()?;
        levels.get(protection).cloned()
    };
    let guest = &outcome.guest;
    let mut cells = vec![guest.kernel.name.to_owned(), guest.boot.join(" ")];
    cells.extend(PROTECTIONS.map(|name| level(name).unwrap_or_else(|| "nothing".to_owned())));
    Some(cells)
}

fn engines(outcome: &Outcome, table: &str) -> Vec<Vec<String>> {
    let rows = outcome.rows.iter().filter(|row| row.table == table);
    rows.map(|row| row.cells.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::{line, merge};

    #[test]
    fn rows_take_the_place_of_earlier_ones() {
        let row = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let lines =
            |rows: &[&str]| -> Vec<_> { rows.iter().map(|text| line(&row(text))).collect() };
        let earlier = [
            "a b c",
            "- - -",
            "6.1 runc good",
            "6.1 crun good",
            "7.3 runc bad",
        ];
        let earlier = lines(&earlier).concat();
        let rows = [
            "6.1 runc bad",
            "6.1 LXC good",
            "7.3 runc good",
            "8.0 runc good",
        ];
        let merged = merge(&earlier, rows.map(row).to_vec(), 2);
        let expected = [
            "6.1 runc bad",
            "6.1 crun good",
            "6.1 LXC good",
            "7.3 runc good",
            "8.0 runc good",
        ];
        assert_eq!(merged, lines(&expected));
    }
}
