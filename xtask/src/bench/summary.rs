//! What was counted, as ratios and pictures. `docs/performance.md` shows them; the figures
//! themselves are in `docs/data/performance.md`.

use super::{Counted, Dump, Found, Row};
use crate::{
    docs,
    plot::{Bars, Panel, Picture, Series, SeriesLabelPosition},
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

/// What a guard can find, with the words for it.
const STATES: [(Found, &str); 3] = [
    (Found::Service, "the service runs"),
    (Found::Programs, "no service, a later guard"),
    (Found::Nothing, "no service, the first guard after a boot"),
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
    Summary {
        begin: "<!-- operations: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &["operation"],
        names: || OPERATIONS.map(|name| vec![name.to_owned()]).to_vec(),
        cell: |counted, number| {
            let mut rows = counted.report.rows.iter();
            let row = rows.find(|row| is(row, OPERATIONS[number]))?;
            let most = row.guarded().map(|(_, most)| most).fold(0.0, f64::max);
            Some(format!("{:.2}", most.round() / row.at("none").round()))
        },
    },
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
            Some(format!("{:.2}", shown(dump.guarded) / shown(dump.bare)))
        },
    },
    Summary {
        begin: "<!-- begins: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &["state of the host"],
        names: || STATES.map(|(_, state)| vec![state.to_owned()]).to_vec(),
        cell: |counted, number| {
            let mut lives = counted.report.lives.iter();
            let life = lives.find(|life| {
                (&*life.hierarchy, life.tasks, life.found) == (HIERARCHY, 10, STATES[number].0)
            })?;
            Some(format!("{:.1}", shown(life.begin)))
        },
    },
];

/// Milliseconds, as exact as they stand in the tables.
fn shown(ns: f64) -> f64 {
    (ns / 1e5).round() / 10.0
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

impl Summary {
    /// Returns the table, or nothing if figures are missing.
    pub(super) fn table(&self, counted: &[Counted]) -> String {
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

/// What is added to the operations that hosts live by, on each kernel.
pub(super) fn operations_on_all(counted: &[Counted]) -> Picture {
    let panels = counted.iter().flat_map(|counted| {
        ["v1", "v2"].map(|name| operations_panel(counted.kernel, name, &counted.report.rows))
    });
    added(panels.collect(), SeriesLabelPosition::MiddleRight)
}

/// The same on the newest kernel.
fn operations(counted: &[Counted]) -> Picture {
    let panels = counted.last().map(|counted| {
        let mut panel = operations_panel(counted.kernel, HIERARCHY, &counted.report.rows);
        let of_summary = |bars: &Bars| OPERATIONS.contains(&&*bars.name);
        panel.bars.retain(of_summary);
        panel
    });
    added(
        panels.into_iter().collect(),
        SeriesLabelPosition::LowerRight,
    )
}

fn added(mut panels: Vec<Panel>, legend: SeriesLabelPosition) -> Picture {
    panels.retain(|panel| !panel.bars.is_empty());
    Picture {
        unit: "% more instructions",
        legend,
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
        let none = row.at("none").round();
        let percent = |instructions: f64| 100.0 * (instructions.round() / none - 1.0).max(0.0);
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

/// How long dumps take on the newest kernel.
fn dump_times(counted: &[Counted]) -> Picture {
    let bars = |counted: &Counted, mib: usize| {
        let times = STATES.map(|(found, _)| dump(counted, found, mib));
        let bare = times[0].map(|dump| dump.bare);
        let guarded = times.into_iter().map(|dump| Some(dump?.guarded));
        let ns: Option<Vec<_>> = std::iter::once(bare).chain(guarded).collect();
        let values = ns?.into_iter().map(shown).collect();
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
        legend: SeriesLabelPosition::UpperRight,
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
        super::{CHAPTER, Counted, DATA, Figure, Life, Report, tables},
        Dump, Found, PICTURES, Row, SUMMARIES,
    };
    use crate::{build::workspace, docs, kernel::KERNELS, plot};

    fn text(file: &str) -> String {
        fs::read_to_string(workspace().join(file)).expect("a file of the docs")
    }

    /// The cells of a table of figures, its head first.
    fn cells(begin: &str) -> Vec<Vec<String>> {
        let data = text(DATA);
        let (_, rest) = data.split_once(begin).expect("the file has the mark");
        let (table, _) = rest.split_once(docs::END).expect("the table ends");
        let lines = table.lines().filter(|line| line.starts_with("| "));
        let words = |line: &str| {
            let line = line.trim_matches('|');
            line.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        lines.map(words).collect()
    }

    fn number(cell: &str) -> f64 {
        cell.parse().expect("a number")
    }

    fn found(cell: &str) -> Found {
        serde_json::from_value(cell.into()).expect("a state")
    }

    fn row(head: &[String], cells: &[String]) -> Row {
        let figure = |(condition, cell): (&String, &String)| Figure {
            condition: condition.clone(),
            median: number(cell),
            p10: number(cell),
            p90: number(cell),
        };
        let figures = head.iter().zip(cells).take(head.len() - 1).skip(3);
        Row {
            hierarchy: cells[1].clone(),
            operation: cells[2].clone(),
            figures: figures.map(figure).collect(),
        }
    }

    /// The figures in the docs.
    fn counted() -> Vec<Counted> {
        let (rows, tables) = (
            cells(tables::BEGIN),
            tables::MORE.map(|more| cells(more.begin)),
        );
        let [lives, _, _, dumps] = &tables;
        let counted = KERNELS.iter().map(|kernel| {
            let here = |row: &&Vec<String>| row[0] == kernel.name;
            let mut report = Report::default();
            let of = rows.iter().filter(here).map(|cells| row(&rows[0], cells));
            report.rows = of.collect();
            let of = lives.iter().filter(here).map(|cells| Life {
                hierarchy: cells[1].clone(),
                tasks: number(&cells[2]) as usize,
                found: found(&cells[3]),
                begin: number(&cells[4]) * 1e6,
                end: number(&cells[5]) * 1e6,
            });
            report.lives = of.collect();
            let of = dumps.iter().filter(here).map(|cells| Dump {
                hierarchy: cells[1].clone(),
                mib: number(&cells[2]) as usize,
                found: found(&cells[3]),
                bare: number(&cells[4]) * 1e6,
                guarded: number(&cells[5]) * 1e6,
            });
            report.dumps = of.collect();
            Counted {
                kernel: kernel.name,
                report,
            }
        });
        counted.collect()
    }

    #[test]
    fn the_summary_says_what_the_figures_say() {
        let counted = counted();
        let chapter = text(CHAPTER);
        for summary in SUMMARIES {
            let table = summary.table(&counted);
            let found = chapter.contains(&format!("{}\n{table}\n{}", summary.begin, docs::END));
            assert!(
                found && !table.is_empty(),
                "{CHAPTER} does not say:\n{table}"
            );
        }
    }

    #[test]
    fn the_pictures_show_what_the_figures_say() {
        let counted = counted();
        let dir = tempfile::tempdir().expect("a directory");
        for (file, picture) in PICTURES {
            let path = dir.path().join("picture.svg");
            plot::draw(&path, &picture(&counted)).expect("a picture");
            let drawn = fs::read_to_string(&path).expect("the picture");
            assert!(drawn == text(file), "{file} shows other figures");
        }
    }
}
