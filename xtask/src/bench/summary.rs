//! Ratios and pictures of the figures. `docs/performance.md` shows them, and
//! `docs/data/performance.md` has the figures.

use anyhow::{Result, ensure};

use super::{Counted, Dump, Found, Row};
use crate::{
    docs,
    plot::{Bars, Panel, Picture, Series},
};

/// The hierarchy of the summary. Most hosts have v2 only, and there guards cost more.
const HIERARCHY: &str = "v2";

/// The operations in the summary.
const OPERATIONS: [&str; 8] = [
    "read tmpfs",
    "write tmpfs",
    "pipe ping",
    "open+close",
    "stat deep path",
    "signal",
    "fork+exit",
    "exec",
];

/// The states of the host at the begin of a guard, with their names in the docs.
const STATES: [(Found, &str); 3] = [
    (Found::Service, "the service runs"),
    (Found::Programs, "no service, later guard"),
    (Found::Nothing, "no service, first guard after a boot"),
];

/// A table with one column for each kernel.
pub(super) struct Summary {
    /// Its mark in the chapter.
    pub(super) begin: &'static str,
    head: &'static [&'static str],
    /// The rows that these kernels have together, by their first cells.
    names: fn() -> Vec<Vec<String>>,
    /// The cell of a kernel in the row with this number.
    cell: fn(&Counted, usize) -> Option<String>,
}

pub(super) const SUMMARIES: [Summary; 3] = [
    operations_marked("<!-- operations: made by `cargo xtask bench --kernel all --docs` -->\n"),
    Summary {
        begin: "<!-- dumps: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &["state of the host", "memory, MiB"],
        names: || {
            let names = dumps().into_iter();
            names
                .map(|(_, state, mib)| vec![state.to_owned(), mib.to_string()])
                .collect()
        },
        cell: |counted, number| {
            let (found, _, mib) = dumps()[number];
            let dump = dump(counted, found, mib)?;
            Some(format!("{:.2}", dump.guarded / dump.bare))
        },
    },
    begins_marked("<!-- begins: made by `cargo xtask bench --kernel all --docs` -->\n"),
];

/// The same at the level `best-effort`.
pub(super) const BEST_EFFORT: [Summary; 2] = [
    operations_marked(
        "<!-- best effort: made by `cargo xtask bench --best-effort --kernel all --docs` -->\n",
    ),
    begins_marked(
        "<!-- begins at best effort: made by `cargo xtask bench --best-effort --kernel all --docs` -->\n",
    ),
];

const fn operations_marked(begin: &'static str) -> Summary {
    Summary {
        begin,
        head: &["operation"],
        names: || OPERATIONS.map(|name| vec![name.to_owned()]).to_vec(),
        cell: |counted, number| {
            let mut rows = counted.report.rows.iter();
            let row = rows.find(|row| is(row, OPERATIONS[number]))?;
            let most = row.guarded().map(|(_, most)| most).fold(0.0, f64::max);
            Some(format!("{:.2}", most / row.at("none")))
        },
    }
}

const fn begins_marked(begin: &'static str) -> Summary {
    Summary {
        begin,
        head: &["state of the host"],
        names: || STATES.map(|(_, state)| vec![state.to_owned()]).to_vec(),
        cell: |counted, number| {
            let mut lives = counted.report.lives.iter();
            let life = lives.find(|life| {
                (&*life.hierarchy, life.tasks, life.found) == (HIERARCHY, 10, STATES[number].0)
            })?;
            Some(format!("{:.1}", life.begin / 1e6))
        },
    }
}

fn is(row: &Row, operation: &str) -> bool {
    (&*row.hierarchy, &*row.operation) == (HIERARCHY, operation)
}

/// The dumps in the summary.
fn dumps() -> Vec<(Found, &'static str, usize)> {
    let states = STATES.into_iter();
    states
        .flat_map(|(found, state)| [1, 100, 500].map(|mib| (found, state, mib)))
        .collect()
}

fn dump(counted: &Counted, found: Found, mib: usize) -> Option<&Dump> {
    let mut dumps = counted.report.dumps.iter();
    dumps.find(|dump| (&*dump.hierarchy, dump.found, dump.mib) == (HIERARCHY, found, mib))
}

/// Writes these tables into the chapter.
pub(super) fn write(summaries: &[Summary], chapter: &str, counted: &[Counted]) -> Result<()> {
    for summary in summaries {
        let table = summary.table(counted);
        ensure!(
            !table.is_empty(),
            "there are no figures for {chapter}: {}",
            summary.begin
        );
        docs::put(chapter, summary.begin, &table)?;
    }
    Ok(())
}

impl Summary {
    /// Returns the table, or nothing if figures are missing.
    fn table(&self, counted: &[Counted]) -> String {
        let kernels = counted.iter().map(|counted| counted.kernel);
        let head: Vec<_> = self.head.iter().copied().chain(kernels).collect();
        let mut text = docs::line(&head) + "|" + &"---|".repeat(head.len()) + "\n";
        for (number, mut cells) in (self.names)().into_iter().enumerate() {
            for counted in counted {
                match (self.cell)(counted, number) {
                    Some(cell) => cells.push(cell),
                    None => return String::new(),
                }
            }
            text += &docs::line(&cells);
        }
        text
    }
}

/// Draws a picture of what was counted.
type Drawing = fn(&[Counted]) -> Picture;

/// The pictures, with their files.
pub(super) const PICTURES: [(&str, Drawing); 3] = [
    ("docs/data/performance.svg", operations_on_all),
    ("docs/pictures/operations.svg", operations),
    ("docs/pictures/dumps.svg", dump_times),
];

/// Draws the instructions that guards add to operations, on each kernel.
pub(super) fn operations_on_all(counted: &[Counted]) -> Picture {
    let panels = counted.iter().flat_map(|counted| {
        ["v1", "v2"].map(|name| operations_panel(counted.kernel, name, &counted.report.rows))
    });
    added(panels.collect())
}

/// Draws the same for the newest kernel.
fn operations(counted: &[Counted]) -> Picture {
    let panels = counted.last().map(|counted| {
        let mut panel = operations_panel(counted.kernel, HIERARCHY, &counted.report.rows);
        let of_summary = |bars: &Bars| OPERATIONS.contains(&&*bars.name);
        panel.bars.retain(of_summary);
        panel
    });
    added(panels.into_iter().collect())
}

fn added(mut panels: Vec<Panel>) -> Picture {
    panels.retain(|panel| !panel.bars.is_empty());
    Picture {
        unit: "% more instructions",
        series: &[
            Series {
                label: "empty programs",
                color: (150, 150, 150),
            },
            Series {
                label: "a guard",
                color: (30, 90, 170),
            },
        ],
        panels,
    }
}

fn operations_panel(kernel: &str, hierarchy: &str, rows: &[Row]) -> Panel {
    let bars = |row: &Row| {
        let none = row.at("none");
        let percent = |instructions: f64| 100.0 * (instructions / none - 1.0).max(0.0);
        let guarded = row.guarded().map(|(_, most)| most).fold(none, f64::max);
        Bars {
            name: row.operation.clone(),
            values: vec![percent(row.at("empty")), percent(guarded)],
        }
    };
    let rows = rows.iter().filter(|row| row.hierarchy == hierarchy);
    Panel {
        title: format!("Linux {kernel}, guards on {hierarchy}"),
        bars: rows
            .filter(|row| !row.operation.ends_with("freezer"))
            .map(bars)
            .collect(),
    }
}

/// Draws the time of dumps on the newest kernel.
fn dump_times(counted: &[Counted]) -> Picture {
    let bars = |counted: &Counted, mib: usize| {
        let times = STATES.map(|(found, _)| dump(counted, found, mib));
        let bare = times[0].map(|dump| dump.bare);
        let guarded = times.into_iter().map(|dump| Some(dump?.guarded));
        let ns: Option<Vec<_>> = std::iter::once(bare).chain(guarded).collect();
        let values = ns?.into_iter().map(|ns| ns / 1e6).collect();
        let name = format!("{mib} MiB");
        Some(Bars { name, values })
    };
    let panels = counted.last().map(|counted| Panel {
        title: format!(
            "criu dump on Linux {}, guard on {HIERARCHY}",
            counted.kernel
        ),
        bars: [1, 100, 500]
            .into_iter()
            .filter_map(|mib| bars(counted, mib))
            .collect(),
    });
    Picture {
        unit: "million instructions",
        series: &[
            Series {
                label: "without a guard",
                color: (150, 150, 150),
            },
            Series {
                label: STATES[0].1,
                color: (30, 90, 170),
            },
            Series {
                label: STATES[1].1,
                color: (110, 160, 220),
            },
            Series {
                label: STATES[2].1,
                color: (225, 140, 50),
            },
        ],
        panels: panels
            .into_iter()
            .filter(|panel| !panel.bars.is_empty())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{CHAPTER, figures, pictures},
        SUMMARIES,
    };
    use crate::{build::workspace, docs};

    #[test]
    fn the_chapter_has_the_ratios_of_the_figures() {
        let counted = figures::in_docs().expect("the docs have figures");
        for summary in SUMMARIES {
            let table = summary.table(&counted);
            let chapter = docs::get(CHAPTER, summary.begin).expect("the chapter has the table");
            assert!(!table.is_empty() && table.trim() == chapter, "{table}");
        }
    }

    #[test]
    fn the_pictures_show_the_figures() {
        for (file, picture) in pictures().expect("the docs have figures") {
            let drawn = fs::read_to_string(workspace().join(file)).expect("a picture");
            assert!(drawn == picture, "{file} shows other figures");
        }
    }
}
