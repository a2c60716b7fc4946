//! `cargo xtask bench`: counts the instructions that operations take in guests whose
//! clock counts them, and compares them to budgets.

mod budget;
mod figures;
mod summary;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    build::{self, Profile, Programs},
    config::{Cgroup, Image},
    docs,
    kernel::Kernel,
    machine::AMD64,
    matrix::NO_BPF,
    plot,
    setup::{self, Needs},
    vm::Vm,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Boot this kernel, or `all` kernels one after the other
    #[arg(long, value_name = "KERNEL", default_value = "6.12")]
    kernel: Vec<String>,
    /// Count while this many guards are held
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 100])]
    guards: Vec<usize>,
    /// Guard a cgroup with this many tasks by `run`
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 1000, 10_000])]
    tasks: Vec<usize>,
    /// Dump a process with this much memory, with and without a guard (MiB)
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_values_t = [1, 100, 500])]
    dumps: Vec<usize>,
    /// Count only with this cgroup layout: v1 or v2
    #[arg(long, value_name = "LAYOUT")]
    cgroup: Option<Cgroup>,
    /// Count only operations with this text in their name
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    only: Vec<String>,
    /// Boot without `bpf` among the security modules, so that guards have the level `best-effort`. With
    /// `--docs` this writes the tables of that level alone
    #[arg(long, conflicts_with = "check")]
    best_effort: bool,
    /// Exit with 1 if a figure is over its budget
    #[arg(long)]
    check: bool,
    /// Write the counted tables and pictures of docs/performance.md. The rows of other kernels stay. With
    /// `--best-effort` this needs `--kernel all`
    #[arg(long)]
    docs: bool,
    /// Draw the instructions that guards add, into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write all figures into this file, as JSON
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

/// The figures of an operation in the output of `freezer-guard-bench --json`.
#[derive(Clone, Serialize, Deserialize)]
struct Row {
    hierarchy: String,
    operation: String,
    figures: Vec<Figure>,
}

/// What a guard finds loaded when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    Nothing,
    Programs,
    Service,
}

/// What `run` takes, ns.
#[derive(Clone, Serialize, Deserialize)]
struct Life {
    hierarchy: String,
    tasks: usize,
    found: Found,
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

/// What a dump takes, ns.
#[derive(Clone, Serialize, Deserialize)]
struct Dump {
    hierarchy: String,
    mib: usize,
    found: Found,
    bare: f64,
    guarded: f64,
}

#[derive(Default, Serialize, Deserialize)]
struct Report {
    rows: Vec<Row>,
    lives: Vec<Life>,
    scale: Vec<Scale>,
    memory: Vec<Memory>,
    dumps: Vec<Dump>,
}

/// What was counted on one kernel.
#[derive(Serialize)]
struct Counted {
    kernel: &'static str,
    #[serde(flatten)]
    report: Report,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let kernels: Vec<_> = Kernel::chosen(&args.kernel)?
        .into_iter()
        .filter(|kernel| kernel.is_counted)
        .collect();
    ensure!(
        !kernels.is_empty(),
        "no guard can begin on this kernel, or another name stands for it: see xtask/src/kernel.rs"
    );
    let guests = kernels.iter().map(|kernel| (*kernel, Image::Initramfs));
    let needs = Needs::guests(guests);
    let programs = setup::guest_programs(&needs, |_| Profile::Release)?;
    let mut counted = Vec::new();
    for kernel in kernels {
        let report = args.count_on(kernel, &programs)?;
        tables::print(kernel.name, &report.rows);
        counted.push(Counted {
            kernel: kernel.name,
            report,
        });
        for more in tables::MORE {
            print!("{}", more.table(&counted[counted.len() - 1..]));
        }
    }
    if args.docs {
        args.write_docs(&counted)?;
    }
    if let Some(path) = &args.plot {
        let picture = summary::operations_on_all(&counted);
        write(path, &plot::draw(&picture)?)?;
    }
    if let Some(path) = &args.json {
        write(path, &serde_json::to_string_pretty(&counted)?)?;
    }
    if args.best_effort {
        return Ok(ExitCode::SUCCESS);
    }
    let over = over_budget(&counted);
    for complaint in &over {
        println!("OVER BUDGET: {complaint}");
    }
    println!("{} over budget", over.len());
    Ok(if args.check && !over.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns a complaint about each figure that is over its budget.
fn over_budget(counted: &[Counted]) -> Vec<String> {
    let mut over = Vec::new();
    for Counted { kernel, report } in counted {
        for row in &report.rows {
            let what = format!("{kernel} {} {}", row.hierarchy, row.operation);
            let complaints = budget::complaints(kernel, row);
            over.extend(complaints.iter().map(|said| format!("{what}: {said}")));
        }
        for life in &report.lives {
            let what = format!("{kernel} {} run, {} tasks", life.hierarchy, life.tasks);
            let complaint = budget::life_complaint(kernel, life, &report.lives);
            over.extend(complaint.map(|said| format!("{what}: {said}")));
        }
        for memory in &report.memory {
            let what = format!("{kernel} {} memory", memory.hierarchy);
            over.extend(
                budget::memory_complaint(kernel, memory).map(|said| format!("{what}: {said}")),
            );
        }
        for dump in &report.dumps {
            let what = format!("{kernel} {} dump of {} MiB", dump.hierarchy, dump.mib);
            over.extend(budget::dump_complaint(kernel, dump).map(|said| format!("{what}: {said}")));
        }
    }
    over
}

/// Every figure.
const DATA: &str = "docs/data/performance.md";
/// The ratios.
const CHAPTER: &str = "docs/performance.md";

/// Writes the tables that there are figures for, and then the ratios and pictures of all figures.
fn write_docs(counted: &[Counted]) -> Result<()> {
    let put = |begin, table: &str| match table {
        "" => Ok(()),
        _ => docs::put(
            DATA,
            begin,
            &tables::with_others(table, &docs::get(DATA, begin)?),
        ),
    };
    put(tables::BEGIN, &tables::operations(counted))?;
    for more in tables::MORE {
        put(more.begin, &more.table(counted))?;
    }
    let counted = figures::in_docs()?;
    summary::write(&summary::SUMMARIES, CHAPTER, &counted)?;
    for (file, picture) in pictures()? {
        write(&build::workspace().join(file), &picture)?;
    }
    Ok(())
}

/// Returns the pictures of the figures for amd64 in the docs, with their files.
pub(crate) fn pictures() -> Result<Vec<(&'static str, String)>> {
    let mut counted = figures::in_docs()?;
    counted.retain(|counted| {
        Kernel::named(counted.kernel).is_ok_and(|kernel| kernel.machine() == &AMD64)
    });
    let pictures = summary::PICTURES.into_iter();
    pictures
        .map(|(file, picture)| Ok((file, plot::draw(&picture(&counted))?)))
        .collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
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
    fn write_docs(&self, counted: &[Counted]) -> Result<()> {
        ensure!(
            self.cgroup.is_none(),
            "--docs needs all layouts: leave out --cgroup"
        );
        match self.best_effort {
            true => {
                ensure!(
                    self.kernel.iter().any(|name| name == "all"),
                    "--best-effort --docs needs --kernel all: each table has all kernels"
                );
                summary::write(&summary::BEST_EFFORT, CHAPTER, counted)
            }
            false => write_docs(counted),
        }
    }

    /// Counts in both layouts, in two guests at once: what else the machine does makes no
    /// difference.
    fn count_on(&self, kernel: &Kernel, programs: &Programs) -> Result<Report> {
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
            all.dumps.extend(report.dumps);
        }
        Ok(all)
    }

    fn count(&self, kernel: &Kernel, cgroup: Cgroup, programs: &Programs) -> Result<Report> {
        let list = |numbers: &[usize]| {
            let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
            numbers.join(",")
        };
        let command = [
            "freezer-guard-bench",
            "--json",
            "--guards",
            &list(&self.guards),
            "--tasks",
            &list(&self.tasks),
            "--dumps",
            &list(&self.dumps),
        ];
        let only = self.only.iter().flat_map(|text| ["--only", text]);
        let command = command.into_iter().chain(only).map(str::to_owned).collect();
        let mut vm = Vm::new(kernel.name, cgroup, Image::Initramfs, command);
        vm.counts_instructions = true;
        if self.best_effort {
            vm.config.boot.push(NO_BPF.to_owned());
        }
        let mut report: Option<Report> = None;
        let code = vm.boot(programs, |line| match serde_json::from_str(line) {
            Ok(said) => report = Some(said),
            Err(_) => eprintln!("{} {}: {line}", kernel.name, cgroup.name()),
        })?;
        ensure!(
            code == 0,
            "`freezer-guard-bench` exited with {code} in the guest"
        );
        report.context("`freezer-guard-bench` printed no result in the guest")
    }
}
