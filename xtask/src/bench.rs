//! `cargo xtask bench`: counts the instructions that operations take in guests whose
//! clock counts them, and compares them to budgets.

use std::{fs, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    build,
    config::{Cgroup, Image},
    docs,
    kernel::{KERNELS, Kernel},
    plot::{self, Bar, Panel},
    setup,
    vm::Vm,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel to count on, or `all`
    #[arg(long, value_name = "KERNEL", default_value = "6.12")]
    kernel: Vec<String>,
    /// How many guards to hold while it counts
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 100])]
    guards: Vec<usize>,
    /// How many tasks to put into the cgroup that `run` guards
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 1000])]
    tasks: Vec<usize>,
    /// Count only in this cgroup layout: v1 or v2
    #[arg(long, value_name = "LAYOUT")]
    cgroup: Option<Cgroup>,
    /// Only what has a name that contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Fail when something costs more than its budget
    #[arg(long)]
    check: bool,
    /// Write the table of docs/performance.md and its picture; with `--kernel all`
    #[arg(long)]
    docs: bool,
    /// Draw what guards add into this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write what was counted into this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What an operation takes under one condition, instructions.
#[derive(Clone, Serialize, Deserialize)]
struct Figure {
    condition: String,
    median: f64,
    p10: f64,
    p90: f64,
}

impl Figure {
    /// Where the timer's interrupt and other work get in, what one in ten is below.
    fn instructions(&self, operation: &str) -> f64 {
        match operation {
            "fork+exit" | "exec" => self.p10,
            _ => self.median,
        }
    }
}

/// What `freezer-guard bench --json` says of an operation.
#[derive(Clone, Serialize, Deserialize)]
struct Row {
    hierarchy: String,
    operation: String,
    figures: Vec<Figure>,
}

/// What `run` takes, ns.
#[derive(Clone, Serialize, Deserialize)]
struct Life {
    hierarchy: String,
    tasks: usize,
    warm: bool,
    begin: f64,
    end: f64,
}

/// What the guards of many clients take, ns for each.
#[derive(Clone, Serialize, Deserialize)]
struct Scale {
    hierarchy: String,
    guards: usize,
    clients: usize,
    begin: f64,
    end: f64,
}

/// Bytes.
#[derive(Clone, Serialize, Deserialize)]
struct Memory {
    hierarchy: String,
    guards: usize,
    service: u64,
    maps: u64,
    programs: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Report {
    rows: Vec<Row>,
    lives: Vec<Life>,
    scale: Vec<Scale>,
    memory: Vec<Memory>,
}

/// What was counted on one kernel.
#[derive(Serialize)]
struct Counted {
    kernel: &'static str,
    #[serde(flatten)]
    report: Report,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    setup::setup(false)?;
    let programs = build::guest_programs()?;
    let mut counted = Vec::new();
    for kernel in Kernel::chosen(&args.kernel)? {
        let report = args.count_on(kernel, &programs)?;
        print(kernel.name, &report.rows);
        counted.push(Counted {
            kernel: kernel.name,
            report,
        });
        for more in MORE {
            print!("{}", more.table(&counted[counted.len() - 1..]));
        }
    }
    if args.docs {
        ensure!(
            counted.len() == KERNELS.len() && args.cgroup.is_none() && args.only.is_empty(),
            "--docs goes with --kernel all: the table is about all kernels"
        );
        docs::put(DOCS, BEGIN, &table(&counted))?;
        for more in MORE {
            docs::put(DOCS, more.begin, &more.table(&counted))?;
        }
        plot::draw(&build::workspace().join(PICTURE), &panels(&counted))?;
    }
    if let Some(path) = &args.plot {
        plot::draw(path, &panels(&counted))?;
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&counted)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    let mut over = 0;
    for Counted { kernel, report } in &counted {
        for row in &report.rows {
            for complaint in complaints(kernel, row) {
                println!(
                    "OVER BUDGET: {kernel} {} {}: {complaint}",
                    row.hierarchy, row.operation
                );
                over += 1;
            }
        }
    }
    println!("{over} over budget");
    Ok(if args.check && over > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

const DOCS: &str = "docs/performance.md";
const PICTURE: &str = "docs/performance.svg";
const BEGIN: &str = "<!-- made by `cargo xtask bench --kernel all --docs` -->\n";

/// A row for each operation, kernel by kernel.
fn table(counted: &[Counted]) -> String {
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
            cells.push(match empty - none > exactness(&row.operation, none) {
                true => format!("{:.2}", most / (empty - none)),
                false => String::new(),
            });
            text += &docs::line(&cells);
        }
    }
    text
}

/// A table of what is no operation.
struct More {
    /// Where it goes in the docs.
    begin: &'static str,
    /// Of its columns, behind the kernel.
    head: &'static [&'static str],
    cells: fn(&Report) -> Vec<Vec<String>>,
}

const MORE: [More; 3] = [
    More {
        begin: "<!-- run: made by `cargo xtask bench --kernel all --docs` -->\n",
        head: &["guard on", "tasks", "service", "begin, ms", "end, ms"],
        cells: |report| {
            let cells = report.lives.iter().map(|life| {
                vec![
                    life.hierarchy.clone(),
                    life.tasks.to_string(),
                    yes_or_no(life.warm),
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
];

fn yes_or_no(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

impl More {
    /// With the kernel in front of each line; nothing if there is none.
    fn table(&self, counted: &[Counted]) -> String {
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

/// What is added to the operations that hosts live by.
fn panels(counted: &[Counted]) -> Vec<Panel> {
    let bar = |row: &Row| {
        let none = row.at("none");
        let percent = |instructions: f64| 100.0 * (instructions / none - 1.0).max(0.0);
        Bar {
            operation: row.operation.clone(),
            by_empty: percent(row.at("empty")),
            by_guard: percent(row.guarded().map(|(_, most)| most).fold(none, f64::max)),
        }
    };
    let panel = |kernel: &str, hierarchy: &str, rows: &[Row]| Panel {
        title: format!("{kernel}, guards on {hierarchy}"),
        bars: rows
            .iter()
            .filter(|row| row.hierarchy == hierarchy && !row.operation.ends_with("freezer"))
            .map(bar)
            .collect(),
    };
    counted
        .iter()
        .flat_map(|counted| {
            ["v1", "v2"].map(|name| panel(counted.kernel, name, &counted.report.rows))
        })
        .filter(|panel| !panel.bars.is_empty())
        .collect()
}

impl Row {
    /// What it takes under a condition.
    fn at(&self, condition: &str) -> f64 {
        let mut figures = self.figures.iter();
        let found = figures.find(|figure| figure.condition == condition);
        found.map_or(f64::NAN, |figure| figure.instructions(&self.operation))
    }

    /// The conditions with guards, and what it takes with them.
    fn guarded(&self) -> impl Iterator<Item = (&str, f64)> {
        let figures = self.figures.iter();
        figures
            .filter(|figure| figure.condition.starts_with("guards-"))
            .map(|figure| (&*figure.condition, figure.instructions(&self.operation)))
    }
}

impl Args {
    /// Counts in both layouts, in two guests at once: what else the machine does makes no
    /// difference.
    fn count_on(&self, kernel: &Kernel, programs: &[PathBuf]) -> Result<Report> {
        let layouts = [Cgroup::V1, Cgroup::V2].into_iter();
        let layouts = layouts.filter(|layout| self.cgroup.is_none_or(|only| only == *layout));
        let results: Vec<_> = thread::scope(|scope| {
            let guests: Vec<_> = layouts
                .map(|layout| scope.spawn(move || self.count(kernel, layout, programs)))
                .collect();
            let results = guests.into_iter().map(|guest| guest.join());
            results.collect()
        });
        let mut all = Report::default();
        for result in results {
            let report = result.map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
            all.rows.extend(report.rows);
            all.lives.extend(report.lives);
            all.scale.extend(report.scale);
            all.memory.extend(report.memory);
        }
        Ok(all)
    }

    fn count(&self, kernel: &Kernel, cgroup: Cgroup, programs: &[PathBuf]) -> Result<Report> {
        let list = |numbers: &[usize]| {
            let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
            numbers.join(",")
        };
        let command = [
            "freezer-guard",
            "bench",
            "--json",
            "--guards",
            &list(&self.guards),
            "--tasks",
            &list(&self.tasks),
            "--only",
            &self.only,
        ];
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let mut vm = Vm::new(kernel.name, cgroup, Image::Initramfs, command);
        vm.counts_instructions = true;
        let mut report: Option<Report> = None;
        let code = vm.boot(programs, |line| match serde_json::from_str(line) {
            Ok(said) => report = Some(said),
            Err(_) => eprintln!("{} {}: {line}", kernel.name, cgroup.name()),
        })?;
        ensure!(code == 0, "`freezer-guard bench` ended with {code}");
        report.context("`freezer-guard bench` has printed no result")
    }
}

fn print(kernel: &str, rows: &[Row]) {
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

/// How much more than what empty programs add guards may add. docs/performance.md tells
/// why older kernels have other limits, and why a `stat` has any.
fn budget(kernel: &str, hierarchy: &str, operation: &str) -> Option<f64> {
    Some(match (kernel, hierarchy, operation) {
        (_, _, "read /dev/zero" | "read tmpfs") => 1.07,
        ("5.10", _, "write /dev/null" | "write tmpfs") => 1.43,
        ("6.1", _, "write /dev/null" | "write tmpfs") => 1.26,
        (_, _, "write /dev/null" | "write tmpfs") => 1.20,
        (_, _, "fork+exit") => 1.5,
        ("5.10", "v2", "stat deep path") => 1.15,
        (_, "v2", "stat deep path") => 1.07,
        _ => return None,
    })
}

/// How exact an operation's figure is, instructions. A process gets other pages each time;
/// a path's names share their places in a table of the kernel's with others; and so do
/// holders' threads and targets in ours.
fn exactness(operation: &str, figure: f64) -> f64 {
    match operation {
        "fork+exit" | "exec" => figure / 200.0,
        "open+close" => figure / 25.0,
        "stat deep path" => figure / 500.0,
        "signal" | "write unrelated freezer" => 40.0,
        "write unrelated cgroup file" => 1.0,
        _ => 0.05,
    }
}

/// What is not as it has to be.
fn complaints(kernel: &str, row: &Row) -> Vec<String> {
    let (none, empty) = (row.at("none"), row.at("empty"));
    let exactness = exactness(&row.operation, none);
    let mut complaints = Vec::new();
    for condition in ["idle", "after"] {
        let more = row.at(condition) - none;
        if more.abs() > exactness {
            complaints.push(format!("{condition}: {more:+.2} instructions"));
        }
    }
    if let Some(limit) = budget(kernel, &row.hierarchy, &row.operation) {
        for (condition, instructions) in row.guarded() {
            let is = (instructions - none - exactness) / (empty - none + exactness);
            if is > limit {
                complaints.push(format!(
                    "{condition}: adds {is:.3} times what empty programs add, of {limit}"
                ));
            }
        }
    }
    // Many cost what few cost.
    if row.operation != "write guarded freezer"
        && let Some((fewest, few)) = row.guarded().next()
    {
        for (condition, many) in row.guarded().skip(1) {
            let more = many - few;
            if more.abs() > exactness {
                complaints.push(format!("{condition}: {more:+.2} instructions to {fewest}"));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::{Figure, Row, complaints};

    /// A read, as it takes on 6.12, and with so many instructions here.
    fn read(condition: &str, instructions: f64) -> Row {
        let figures = [
            ("none", 662.0),
            ("empty", 847.0),
            ("idle", 662.0),
            ("guards-1", 851.0),
            ("guards-100", 851.0),
            ("after", 662.0),
        ];
        let figures = figures.map(|(name, usual)| {
            let median = if name == condition {
                instructions
            } else {
                usual
            };
            Figure {
                condition: name.to_owned(),
                median,
                p10: median,
                p90: median,
            }
        });
        Row {
            hierarchy: "v2".to_owned(),
            operation: "read tmpfs".to_owned(),
            figures: figures.into(),
        }
    }

    #[test]
    fn complains_of_what_is_over_its_budget() {
        assert!(complaints("6.12", &read("none", 662.0)).is_empty());
        for (condition, instructions) in [
            ("idle", 663.0),
            ("after", 661.0),
            ("guards-1", 875.0),
            ("guards-100", 852.0),
        ] {
            let said = complaints("6.12", &read(condition, instructions));
            let is_named = said.iter().any(|said| said.contains(condition));
            assert!(is_named, "{condition}: {said:?}");
        }
    }
}
