//! A report as text of 80 columns.

use std::{borrow::Cow, fmt::Write as _};

use textwrap::{Options, WordSeparator, WordSplitter, wrap};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{Moment, Report};
use crate::words::{escaped, timestamp};

/// The width of a terminal that everybody has.
const WIDTH: usize = 80;
/// The width of a name of a fact.
const NAME: usize = 14;
/// The width of a time and a mark before what happened.
const TIME: usize = 16;

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    paragraph(
        &mut text,
        "",
        &format!("{}: {}", report.about, report.verdict.name()),
    );
    text.push('\n');
    for fact in &report.facts {
        paragraph(
            &mut text,
            &format!("  {:<width$}", fact.name, width = NAME - 2),
            &fact.value,
        );
    }
    text.push('\n');
    let label = |name| format!("  {name:<width$}", width = TIME - 2);
    if let Some((first, _)) = report.range() {
        paragraph(&mut text, &label("begin"), &timestamp(first));
    }
    for moment in &report.timeline {
        paragraph(&mut text, &time(moment), &what(report, moment));
    }
    let verdict = format!("{}: {}", report.verdict.name(), report.meaning);
    paragraph(&mut text, &label("verdict"), &verdict);
    if !report.unknown.is_empty() {
        text.push_str("\nNot known:\n");
    }
    for unknown in &report.unknown {
        paragraph(&mut text, "  - ", unknown);
    }
    text
}

/// `!    +1.234 s  `: the mark is that of a violation or an error.
fn time(moment: &Moment) -> String {
    let mark = moment.kind.pick('!', '*', ' ');
    let seconds = format!("+{:.3} s", moment.offset_seconds);
    format!("{mark} {seconds:>width$}  ", width = TIME - 4)
}

/// What happened, and until when.
pub(super) fn what(report: &Report, moment: &Moment) -> String {
    let mut what = moment.what.clone();
    if let (Some(until), Some((first, _))) = (moment.until, report.range()) {
        let seconds = super::seconds(Some(first), until);
        // Writing to a string cannot fail.
        let _ = write!(what, ", until +{seconds:.3} s");
    }
    what
}

/// Adds text behind a label. Its further lines are as far to the right as the label is wide.
fn paragraph(text: &mut String, label: &str, words: &str) {
    let indent = " ".repeat(label.width());
    for (number, line) in wrapped(words, WIDTH - label.width())
        .into_iter()
        .enumerate()
    {
        text.push_str(if number == 0 { label } else { &indent });
        text.push_str(&line);
        text.push('\n');
    }
}

/// Breaks escaped text into lines of at most this width: between words, or within one that is
/// longer than a line.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let options = Options::new(width)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation);
    let text = escaped(text);
    let lines = wrap(&text, options).into_iter();
    lines.map(Cow::into_owned).collect()
}

/// How many bytes of a text fit into this width, at least those of one character.
pub(super) fn fitting(text: &str, width: usize) -> usize {
    let mut used = 0;
    for (at, character) in text.char_indices() {
        used += character.width().unwrap_or(0);
        if used > width && at > 0 {
            return at;
        }
    }
    text.len()
}
