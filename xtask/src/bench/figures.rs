//! Reads the figures in the docs. Ratios and pictures are made of them, and so say the same.

use anyhow::{Context as _, Result};

use super::{Counted, DATA, Dump, Figure, Found, Life, Report, Row, tables};
use crate::{
    docs,
    kernel::{KERNELS, Kernel},
};

/// The cells of a table, row by row.
type Cells = Vec<Vec<String>>;

/// Returns the operations, lives and dumps in the docs, for each kernel that was counted on.
pub(super) fn in_docs() -> Result<Vec<Counted>> {
    let operations = cells(tables::BEGIN)?;
    let [lives, _, _, dumps] = tables::MORE.map(|more| cells(more.begin));
    let (lives, dumps) = (lives?, dumps?);
    let of = |kernel: &Kernel| {
        let report = Report {
            rows: read(&operations, kernel, row)?,
            lives: read(&lives, kernel, life)?,
            dumps: read(&dumps, kernel, dump)?,
            ..Report::default()
        };
        let kernel = kernel.name;
        Ok(Counted { kernel, report })
    };
    let is_counted = |kernel: &&Kernel| operations.iter().any(|row| row[0] == kernel.name);
    KERNELS.iter().filter(is_counted).map(of).collect()
}

/// Returns the cells behind a mark, the head first.
fn cells(begin: &str) -> Result<Cells> {
    let table = docs::get(DATA, begin)?;
    let lines = table.lines().filter(|line| line.starts_with("| "));
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    Ok(lines.map(cells).collect())
}

/// Reads the rows of this kernel. The reader gets the head too.
fn read<T>(
    table: &Cells,
    kernel: &Kernel,
    reader: fn(&[String], &[String]) -> Result<T>,
) -> Result<Vec<T>> {
    let head = table.first().context("a table has no head")?;
    let rows = table.iter().skip(1).filter(|row| row[0] == kernel.name);
    rows.map(|row| reader(head, row).with_context(|| format!("read this row of {DATA}: {row:?}")))
        .collect()
}

fn row(head: &[String], row: &[String]) -> Result<Row> {
    // The last column is a ratio.
    let figures = head.iter().zip(row).take(head.len() - 1).skip(3);
    let figures = figures.map(|(condition, cell)| {
        let figure: f64 = cell.parse()?;
        Ok(Figure {
            condition: condition.clone(),
            median: figure,
            p10: figure,
            p90: figure,
        })
    });
    Ok(Row {
        hierarchy: cell(row, 1)?.to_owned(),
        operation: cell(row, 2)?.to_owned(),
        figures: figures.collect::<Result<_>>()?,
    })
}

fn life(_: &[String], row: &[String]) -> Result<Life> {
    Ok(Life {
        hierarchy: cell(row, 1)?.to_owned(),
        tasks: cell(row, 2)?.parse()?,
        found: found(row)?,
        begin: ns(row, 4)?,
        end: ns(row, 5)?,
    })
}

fn dump(_: &[String], row: &[String]) -> Result<Dump> {
    Ok(Dump {
        hierarchy: cell(row, 1)?.to_owned(),
        mib: cell(row, 2)?.parse()?,
        found: found(row)?,
        bare: ns(row, 4)?,
        guarded: ns(row, 5)?,
    })
}

fn cell(row: &[String], number: usize) -> Result<&str> {
    let cell = row.get(number).map(String::as_str);
    cell.with_context(|| format!("there is no cell {number}"))
}

fn found(row: &[String]) -> Result<Found> {
    Ok(serde_json::from_value(cell(row, 3)?.into())?)
}

/// The milliseconds of a cell, in ns.
fn ns(row: &[String], number: usize) -> Result<f64> {
    let ms: f64 = cell(row, number)?.parse()?;
    Ok(ms * 1e6)
}
