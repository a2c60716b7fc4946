//! Guards as a table that fits into a terminal.

use unicode_width::UnicodeWidthStr as _;

use super::text::fitting;
use crate::{
    guard::{Incident, State, Status, total},
    words::{escaped, join},
};

/// A guard, and what its status does not have.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The guard.
    pub guard: &'a Status,
    /// The process that holds it: `12 criu`.
    pub holder: String,
    /// Whether it has ended.
    pub has_ended: bool,
    /// Whether this is what was seen of it before it ended.
    pub is_last_seen: bool,
}

/// A line of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its text, with nothing in it that drives a terminal.
    pub text: String,
    /// How it is to be shown.
    pub style: Style,
}

/// How a line is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// The names of the columns.
    Head,
    /// A guard.
    Plain,
    /// What belongs to the guard above.
    Detail,
    /// A guard that was violated.
    Alarm,
}

/// The columns, the cgroup left out.
const NAMES: [&str; 7] = [
    "GUARD",
    "STATE",
    "LEVEL",
    "HELD",
    "HOLDER",
    "REFUSED",
    "VIOLATIONS",
];
const CGROUP: &str = "CGROUP";
/// The place of the cgroup among them.
const BEFORE_CGROUP: usize = 5;
/// Those that give way to the others, the first one first.
const GIVE_WAY: [&str; 3] = ["LEVEL", "HOLDER", "STATE"];
/// Those that are numbers.
const RIGHT: [&str; 4] = ["GUARD", "HELD", "REFUSED", "VIOLATIONS"];
/// The narrowest column of cgroups.
const NARROWEST: usize = 24;
const GAP: usize = 2;

/// Returns the table. `width`: that of the terminal, or `None` if every line may be as long as it
/// is. A cgroup that has no room in its line gets one of its own.
pub fn table(rows: &[Row<'_>], width: Option<usize>) -> Vec<Line> {
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let cgroups: Vec<_> = rows.iter().map(cgroup).collect();
    let width = width.unwrap_or(usize::MAX);
    let layout = Layout::of(&cells, &cgroups, width);
    let mut lines = vec![layout.line(&NAMES.map(str::to_owned), CGROUP, Style::Head)];
    for ((row, cells), cgroup) in rows.iter().zip(&cells).zip(&cgroups) {
        let style = match row.guard.violation_count() {
            0 => Style::Plain,
            _ => Style::Alarm,
        };
        lines.push(layout.line(cells, cgroup, style));
        let cgroup = (layout.cgroup == 0).then(|| shortened(cgroup, width.saturating_sub(GAP)));
        for detail in cgroup.into_iter().chain(last_incident(row.guard)) {
            lines.push(Line {
                text: format!("{:GAP$}{detail}", ""),
                style: Style::Detail,
            });
        }
    }
    for line in &mut lines {
        let kept = fitting(&line.text, width);
        line.text.truncate(kept);
    }
    lines
}

/// How wide each column is; 0: it is not shown.
struct Layout {
    widths: [usize; NAMES.len()],
    cgroup: usize,
}

impl Layout {
    fn of(cells: &[[String; NAMES.len()]], cgroups: &[String], width: usize) -> Self {
        let widest = |column: usize| {
            let cells = cells.iter().map(|row| row[column].width());
            cells.chain([NAMES[column].width()]).max().unwrap_or(0)
        };
        let mut widths: [usize; NAMES.len()] = std::array::from_fn(widest);
        let cgroup = cgroups.iter().map(|cgroup| cgroup.width());
        let cgroup = cgroup.chain([CGROUP.width()]).max().unwrap_or(0);
        let used = |widths: &[usize]| -> usize {
            let shown = widths.iter().filter(|width| **width > 0);
            shown.map(|width| width + GAP).sum()
        };
        let left = width.saturating_sub(used(&widths));
        if left >= cgroup.min(NARROWEST) {
            let cgroup = cgroup.min(left);
            return Self { widths, cgroup };
        }
        for name in GIVE_WAY {
            if used(&widths) > width.saturating_add(GAP) {
                let column = NAMES.iter().position(|other| *other == name);
                widths[column.unwrap_or_default()] = 0;
            }
        }
        Self { widths, cgroup: 0 }
    }

    fn line(&self, cells: &[String; NAMES.len()], cgroup: &str, style: Style) -> Line {
        let mut text = String::new();
        let mut add = |cell: &str, width: usize, is_right: bool| {
            let room = " ".repeat(width.saturating_sub(cell.width()));
            let (before, after) = if is_right { (&*room, "") } else { ("", &*room) };
            if width > 0 {
                let gap = if text.is_empty() { "" } else { "  " };
                text.extend([gap, before, cell, after]);
            }
        };
        for (column, (cell, width)) in cells.iter().zip(self.widths).enumerate() {
            if column == BEFORE_CGROUP {
                add(&shortened(cgroup, self.cgroup), self.cgroup, false);
            }
            add(cell, width, RIGHT.contains(&NAMES[column]));
        }
        text.truncate(text.trim_end().len());
        Line { text, style }
    }
}

fn cells(row: &Row<'_>) -> [String; NAMES.len()] {
    let guard = row.guard;
    let state = match row.has_ended {
        true => State::Ended,
        false => guard.state,
    };
    let about = if row.is_last_seen { "~" } else { "" };
    let refused = total(&guard.denials);
    let texts = [
        guard.id.to_string(),
        state.to_string(),
        guard.level.clone(),
        format!("{about}{}", held(guard.held_seconds)),
        row.holder.clone(),
        format!("{refused}"),
        guard.violation_count().to_string(),
    ];
    texts.map(|text| escaped(&text).into_owned())
}

/// `3.2s`, `12m03s`, `1h05m`
fn held(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
    }
}

fn cgroup(row: &Row<'_>) -> String {
    escaped(&join(&row.guard.cgroups, " ")).into_owned()
}

/// The end of a path says most.
fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut end = text;
    while end.width() + 1 > width && !end.is_empty() {
        let first = end.chars().next().map_or(0, char::len_utf8);
        end = &end[first..];
    }
    format!("…{end}")
}

/// The last thing that somebody did to it, or tried to.
fn last_incident(guard: &Status) -> Option<String> {
    let of = |word: &'static str, incident: &Incident| {
        let last = incident.last.clone();
        (last.clone(), format!("{last} {word} {incident}"))
    };
    let refused = guard.intruders.iter().map(|one| of("refused", one));
    let done = guard.violators.iter().map(|one| match one.checkpointing {
        true => of("VIOLATED:", one),
        false => of("repaired:", one),
    });
    let last = refused
        .chain(done)
        .max_by(|one, other| one.0.cmp(&other.0))?;
    Some(escaped(&last.1).into_owned())
}
