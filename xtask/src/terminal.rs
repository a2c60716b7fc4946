//! The output of a program as an animated picture of a terminal.
//!
//! A recording has the format of asciinema (asciicast v2), with one event for each line, so that
//! other players can show it, too.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use svg::{
    Document,
    node::element::{Circle, Group, Line, SVG, Style, Title},
};

use crate::shapes::{rectangle, text};

/// The size of the terminal. A longer line goes on in the next row.
const COLUMNS: usize = 96;
const ROWS: i32 = 28;
/// The height of a row, and the width of all columns in the widest of the fonts, pixels.
const ROW: i32 = 20;
const TEXT_WIDTH: i32 = COLUMNS as i32 * 43 / 5;
/// The space around the text, and the bar above it, pixels.
const MARGIN: i32 = 20;
const BAR: i32 = 36;

/// How long the animation takes, and for how long of this time its end stands still, s.
const LENGTH: f64 = 22.0;
const END: f64 = 5.0;
/// The longest pause of the program that the animation has, s.
const PAUSE: f64 = 1.0;

const BACKGROUND: &str = "#0d1117";
const STYLE: &str = "\
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace;\
fill:#c9d1d9;white-space:pre}
.heading{fill:#79c0ff;font-weight:bold}.command{fill:#fff}.guard{fill:#d2a8ff}.counters{fill:#7ee787}
.intruder{fill:#ff9b94}.refused{fill:#ffa657;font-weight:bold}.good{fill:#7ee787;font-weight:bold}
.title{fill:#8b949e;text-anchor:middle}
";

/// The style of a line that contains a text. The first match counts.
const STYLES: [(&str, &str); 9] = [
    ("== ", "heading"),
    ("Device or resource busy", "refused"),
    ("[intruder]", "intruder"),
    ("freezer-guard: ", "guard"),
    ("finished successfully", "good"),
    ("AS PROMISED", "good"),
    ("counters: ", "counters"),
    ("$ ", "command"),
    ("      ", "command"),
];
/// The styles of lines that stay alone for longer.
const ESSENTIAL: [&str; 4] = ["heading", "refused", "counters", "good"];

/// The lines that a program has written, each with its time.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Recording(Vec<(Duration, String)>);

/// A row of the terminal.
struct Row {
    text: String,
    style: &'static str,
    /// When the animation shows it, s.
    start: f64,
}

impl Recording {
    pub(crate) fn push(&mut self, at: Duration, line: &str) {
        self.0.push((at, line.to_owned()));
    }

    /// Writes the recording. Its first line comes at 0 s.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let start = self.0.first().map_or(Duration::ZERO, |(at, _)| *at);
        let header = json!({"version": 2, "width": COLUMNS, "height": ROWS});
        let mut text = format!("{header}\n");
        for (at, line) in &self.0 {
            let at = at.saturating_sub(start).as_millis() as f64 / 1e3;
            let event = json!([at, "o", format!("{line}\r\n")]);
            text += &format!("{event}\n");
        }
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut recording = Self::default();
        for event in text.lines().skip(1) {
            let (at, kind, line): (f64, String, String) = serde_json::from_str(event)
                .with_context(|| format!("{}: {event}", path.display()))?;
            ensure!(kind == "o", "{} has an event {kind}", path.display());
            recording.push(Duration::try_from_secs_f64(at)?, line.trim_end());
        }
        ensure!(!recording.0.is_empty(), "{} is empty", path.display());
        Ok(recording)
    }

    /// Draws the terminal as an SVG document, with a title in its bar.
    ///
    /// The document has the whole text. A lid covers the rows that the animation has not shown yet:
    /// it moves down row by row. The text moves up when the terminal is full. Where there is no
    /// animation, the picture shows the end.
    pub(crate) fn draw(&self, title: &str) -> String {
        let rows = self.rows();
        let bottom = height(&rows);
        let mut lines = Group::new()
            .set("class", "lines")
            .set("transform", format!("translate(0 -{})", scrolled(bottom)))
            .set("xml:space", "preserve");
        for (row, y) in rows.iter().zip((15..).step_by(ROW as usize)) {
            if !row.text.is_empty() {
                lines = lines.add(text(row.style, 0, y, &row.text));
            }
        }
        let lid = Group::new()
            .set("class", "lid")
            .set("transform", format!("translate(0 {bottom})"))
            .add(rectangle(0, 0, TEXT_WIDTH, ROWS * ROW).set("fill", BACKGROUND))
            .add(rectangle(0, 2, 9, ROW - 4).set("fill", "#c9d1d9"));
        let terminal = SVG::new()
            .set("x", MARGIN)
            .set("y", BAR + MARGIN / 2)
            .set("width", TEXT_WIDTH)
            .set("height", ROWS * ROW)
            .add(lines.add(lid));
        let document = window(title, STYLE.to_owned() + &animation(&rows)).add(terminal);
        format!("{document}\n")
    }

    /// Returns the rows, and when to show them.
    ///
    /// Each line gets the time that the next one took to come, but at most [`PAUSE`], and the time
    /// to read it. Then all times are scaled, so that the animation takes [`LENGTH`].
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut now = 0.0;
        for (number, (at, line)) in self.0.iter().enumerate() {
            let style = STYLES.iter().find(|(part, _)| line.contains(part));
            let style = style.map_or("", |(_, style)| *style);
            rows.extend(wrapped(line).into_iter().map(|text| Row {
                text,
                style,
                start: now,
            }));
            let next = self.0.get(number + 1).map_or(*at, |(next, _)| *next);
            let to_read = match ESSENTIAL.contains(&style) {
                true => 0.8,
                false => 0.004 * line.len() as f64,
            };
            now += next.saturating_sub(*at).as_secs_f64().min(PAUSE) + to_read;
        }
        let last = rows.last().map_or(0.0, |row| row.start);
        for row in &mut rows {
            row.start *= (LENGTH - END) / last.max(f64::MIN_POSITIVE);
        }
        rows
    }
}

/// Breaks a line at spaces where it is too long for a row.
fn wrapped(line: &str) -> Vec<String> {
    let mut rows = Vec::new();
    let mut rest = line.to_owned();
    while rest.chars().count() > COLUMNS {
        let end = rest
            .char_indices()
            .nth(COLUMNS)
            .map_or(rest.len(), |(end, _)| end);
        let Some(space) = rest[..end].trim_start().rfind(' ') else {
            break;
        };
        let space = space + rest.len() - rest.trim_start().len();
        let next = format!("    {}", &rest[space + 1..]);
        rest.truncate(space);
        rows.push(rest);
        rest = next;
    }
    rows.push(rest);
    rows
}

fn height(rows: &[Row]) -> i32 {
    rows.iter().map(|_| ROW).sum()
}

/// Returns how far the text moves up, so that the row below `bottom` is in the window.
fn scrolled(bottom: i32) -> i32 {
    (bottom + ROW - ROWS * ROW).max(0)
}

/// Returns the steps of the lid and of the text, as CSS.
fn animation(rows: &[Row]) -> String {
    let mut lid = String::new();
    let mut lines = String::new();
    for shown in 1..=rows.len() {
        let start = rows[shown - 1].start;
        // The rows of one line come at once.
        if rows.get(shown).is_none_or(|next| next.start > start) {
            let bottom = height(&rows[..shown]);
            let percent = 100.0 * start / LENGTH;
            lid += &format!("{percent:.2}%{{transform:translateY({bottom}px)}}");
            let up = scrolled(bottom);
            lines += &format!("{percent:.2}%{{transform:translateY(-{up}px)}}");
        }
    }
    format!(
        ".lid{{animation:lid {LENGTH}s step-end infinite}}
.lines{{animation:lines {LENGTH}s step-end infinite}}
@keyframes lid{{{lid}}}
@keyframes lines{{{lines}}}
@media (prefers-reduced-motion:reduce){{.lid,.lines{{animation:none}}}}
"
    )
}

/// An empty window.
fn window(title: &str, style: String) -> Document {
    let width = TEXT_WIDTH + 2 * MARGIN;
    let height = BAR + ROWS * ROW + MARGIN;
    let frame = rectangle(1, 1, width - 2, height - 2)
        .set("rx", 10)
        .set("fill", BACKGROUND)
        .set("stroke", "#30363d");
    let border = Line::new()
        .set("x1", 1)
        .set("x2", width - 1)
        .set("y1", BAR)
        .set("y2", BAR)
        .set("stroke", "#30363d");
    let mut document = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("width", width)
        .set("height", height)
        .set("role", "img")
        .add(Title::new(title))
        .add(Style::new(style))
        .add(frame)
        .add(border)
        .add(text("title", width / 2, BAR / 2 + 5, title));
    for (x, color) in [(20, "#ff5f57"), (40, "#febc2e"), (60, "#28c840")] {
        let light = Circle::new().set("cx", x).set("cy", BAR / 2).set("r", 6);
        document = document.add(light.set("fill", color));
    }
    document
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{COLUMNS, LENGTH, ROW, ROWS, Recording, scrolled, wrapped};

    fn recording(lines: impl IntoIterator<Item = (u64, &'static str)>) -> Recording {
        let mut recording = Recording::default();
        for (at, line) in lines {
            recording.push(Duration::from_millis(at), line);
        }
        recording
    }

    #[test]
    fn saves_and_loads() {
        let saved = recording([(0, ""), (1500, "  $ echo \"<&>\" …"), (90_250, "end")]);
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        saved.save(file.path()).expect("it can be written");
        assert_eq!(Recording::load(file.path()).expect("it can be read"), saved);
    }

    #[test]
    fn has_all_lines_as_text() {
        let drawn = recording([(0, "a < b & c"), (5, "  end")]).draw("x");
        let parsed = roxmltree::Document::parse(&drawn).expect("it is XML");
        let texts: Vec<_> = parsed
            .descendants()
            .filter(|node| node.has_tag_name("text"))
            .filter_map(|node| node.text())
            .collect();
        assert_eq!(texts, ["x", "a < b & c", "  end"]);
    }

    #[test]
    fn shortens_pauses_and_keeps_the_order() {
        let rows = recording([(0, "a"), (100, "b"), (60_000, "c"), (60_100, "d")]).rows();
        let starts: Vec<_> = rows.iter().map(|row| row.start).collect();
        assert!(starts.is_sorted(), "{starts:?}");
        assert!(starts[3] < LENGTH, "{starts:?}");
        assert!(
            starts[2] - starts[1] < 20.0 * (starts[1] - starts[0]),
            "{starts:?}"
        );
    }

    #[test]
    fn breaks_long_lines() {
        let long = format!("  {}", "word ".repeat(60));
        let rows = wrapped(long.trim_end());
        assert!(rows.len() > 2, "{rows:?}");
        assert!(
            rows.iter().all(|row| row.chars().count() <= COLUMNS),
            "{rows:?}"
        );
        let words = |text: &str| text.split_whitespace().count();
        assert_eq!(rows.iter().map(|row| words(row)).sum::<usize>(), 60);
        assert_eq!(wrapped(&"x".repeat(200)).len(), 1);
    }

    #[test]
    fn scrolls_when_it_is_full() {
        assert_eq!(scrolled((ROWS - 1) * ROW), 0);
        assert_eq!(scrolled((ROWS + 4) * ROW), 5 * ROW);
    }
}
