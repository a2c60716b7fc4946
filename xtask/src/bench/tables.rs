//! The counts as tables, on the terminal and in the docs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Counted, Found, Report, Row, budget::exactness};
use crate::{docs, kernel::KERNELS};

/// Where the operations go in the docs.
pub(super) const BEGIN: &str = "<!-- made by `cargo xtask bench --kernel all --docs` -->\n";

/// A row for each operation, kernel by kernel.
pub(super) fn operations(counted: &[Counted]) -> String {
    let mut rows = counted.iter().flat_map(|counted| &counted.report.rows);
    let Some(first) = rows.next() else {
        return String::new();
    };
    let conditions = first.figures.iter().map(|figure| &*figure.condition);
    let head: Vec<_> = ["kernel", "guards on", "operation"]
        .into_iter()
        .chain(conditions)
        .chain(["added, of what `empty` adds"])
        .collect();
    let mut text = docs::line(&head) + "|" + &"---|".repeat(head.len()) + "\n";
    for Counted { kernel, report } in counted {
        for row in &report.rows {
            let mut cells = vec![(*kernel).to_owned(), row.hierarchy.clone()];
            cells.push(row.operation.clone());
            let figures = row.figures.iter();
            cells.extend(
                figures.map(|figure| format!("{:.0}", figure.instructions(&row.operation))),
            );
            let (none, empty) = (row.at("none"), row.at("empty"));
            let added = row.guarded().map(|(_, instructions)| instructions - none);
            let most = added.fold(0.0, f64::max);
            cells.push(
                match empty - none > exactness(kernel, &row.operation, none) {
                    true => format!("{:.2}", most / (empty - none)),
                    false => String::new(),
                },
            );
            text += &docs::line(&cells);
        }
    }
    text
}

/// A table of what is no operation.
pub(super) struct More {
    /// Where it goes in the docs.
    pub(super) begin: &'static str,
    /// Of its columns, behind the kernel.
    head: &'static [&'static str],
    cells: fn(&Report) -> Vec<Vec<String>>,
}

pub(super) const MORE: [More; 4] = [
    More {
        begin: "<!-- run: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &["guard on", "tasks", "found", "begin, ms", "end, ms"],
        cells: |report| {
            let cells = report.lives.iter().map(|life| {
                vec![
                    life.hierarchy.clone(),
                    life.tasks.to_string(),
                    found(life.found),
                    format!("{:.1}", life.begin / 1e6),
                    format!("{:.1}", life.end / 1e6),
                ]
            });
            cells.collect()
        },
    },
    More {
        begin: "<!-- many: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &[
            "guards on",
            "guards",
            "clients",
            "begun a second",
            "ended a second",
        ],
        cells: |report| {
            let cells = report.scale.iter().map(|scale| {
                vec![
                    scale.hierarchy.clone(),
                    scale.guards.to_string(),
                    scale.clients.to_string(),
                    format!("{:.1}", 1e9 / scale.begin),
                    format!("{:.1}", 1e9 / scale.end),
                ]
            });
            cells.collect()
        },
    },
    More {
        begin: "<!-- memory: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &[
            "guards on",
            "guards",
            "service, KiB",
            "maps, KiB",
            "programs, KiB",
        ],
        cells: |report| {
            let kib = |bytes: u64| (bytes / 1024).to_string();
            let cells = report.memory.iter().map(|memory| {
                vec![
                    memory.hierarchy.clone(),
                    memory.guards.to_string(),
                    kib(memory.service),
                    kib(memory.maps),
                    kib(memory.programs),
                ]
            });
            cells.collect()
        },
    },
    More {
        begin: "<!-- dumps: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &[
            "guard on",
            "MiB",
            "found",
            "`criu dump`, ms",
            "guarded, ms",
            "ratio",
        ],
        cells: |report| {
            let cells = report.dumps.iter().map(|dump| {
                vec![
                    dump.hierarchy.clone(),
                    dump.mib.to_string(),
                    found(dump.found),
                    format!("{:.1}", dump.bare / 1e6),
                    format!("{:.1}", dump.guarded / 1e6),
                    format!("{:.3}", dump.guarded / dump.bare),
                ]
            });
            cells.collect()
        },
    },
];

fn found(found: Found) -> String {
    match found {
        Found::Nothing => "nothing",
        Found::Programs => "programs",
        Found::Service => "service",
    }
    .to_owned()
}

impl More {
    /// With the kernel in front of each line; nothing if there is none.
    pub(super) fn table(&self, counted: &[Counted]) -> String {
        let mut text = String::new();
        for Counted { kernel, report } in counted {
            for mut cells in (self.cells)(report) {
                cells.insert(0, (*kernel).to_owned());
                text += &docs::line(&cells);
            }
        }
        if text.is_empty() {
            return text;
        }
        let head: Vec<_> = ["kernel"].iter().chain(self.head).collect();
        docs::line(&head) + "|" + &"---|".repeat(head.len()) + "\n" + &text
    }
}

/// Returns the table with the rows that an earlier one has of other kernels, kernel by kernel.
pub(super) fn with_others(table: &str, earlier: &str) -> String {
    let mut rows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let place = |row: &str| {
        let name = row.split('|').nth(1)?.trim();
        KERNELS.iter().position(|kernel| kernel.name == name)
    };
    for row in table.lines().skip(2) {
        rows.entry(place(row)).or_default().push(row);
    }
    let counted: BTreeSet<_> = rows.keys().copied().collect();
    for row in earlier.lines().skip(2) {
        let place = place(row);
        if place.is_some() && !counted.contains(&place) {
            rows.entry(place).or_default().push(row);
        }
    }
    let head = table.lines().take(2);
    head.chain(rows.into_values().flatten())
        .map(|row| format!("{row}\n"))
        .collect()
}

/// For people.
pub(super) fn print(kernel: &str, rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    print!("{:<36}", format!("{kernel}: instructions"));
    for figure in &first.figures {
        print!("{:>11}", figure.condition);
    }
    println!();
    for row in rows {
        print!("{:<4}{:<32}", row.hierarchy, row.operation);
        for figure in &row.figures {
            print!("{:>11.2}", figure.instructions(&row.operation));
        }
        println!();
    }
}

#[cfg(test)]
mod tests {
    use super::with_others;

    #[test]
    fn rows_of_other_kernels_stay() {
        let head = "| kernel | tasks |\n|---|---|\n";
        let earlier =
            format!("{head}| 6.1 | 1 |\n| 6.12 | 2 |\n| 6.12 | 3 |\n| 7.3 | 4 |\n| 5.10 | 7 |");
        let table = format!("{head}| 6.12 | 5 |\n| 6.12-arm64 | 6 |\n");
        let expected = "| 6.1 | 1 |\n| 6.12 | 5 |\n| 7.3 | 4 |\n| 6.12-arm64 | 6 |\n";
        assert_eq!(with_others(&table, &earlier), format!("{head}{expected}"));
    }
}
