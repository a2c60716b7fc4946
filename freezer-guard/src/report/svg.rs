//! A report as a picture: the guard and CRIU as bars over time, the intruders as marks.

use std::time::SystemTime;

use maud::{Markup, PreEscaped, html};

use super::{Kind, Lane, Moment, Report, Span, shown, text};
use crate::words::timestamp;

/// The width of the picture, and where the axis of time is in it.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 112.0;
const RIGHT: f64 = 936.0;
/// The height of a bar, and the tops of the lanes.
const BAR: f64 = 26.0;
const GUARD: f64 = 56.0;
const CRIU: f64 = 94.0;
const INTRUDERS: f64 = 132.0;
const AXIS: f64 = 176.0;
/// The first line of the list, and the height of a line.
const LIST: f64 = 226.0;
const LINE: f64 = 18.0;
/// How many characters are in a line of the list.
const COLUMNS: usize = 112;
/// The width of a character in a bar, at most.
const CHARACTER: f64 = 7.5;

/// The colours, for light and dark. A class of its own for each, since not every program that
/// shows SVG knows variables.
pub(super) const STYLE: &str = "\
.fg-back{fill:#ffffff}.fg-text{fill:#1f2328}.fg-dim{fill:#59636e}.fg-line{stroke:#d1d9e0}\
.fg-prep{fill:#c8d1da}.fg-hold{fill:#1a7f37}.fg-criu{fill:#0969da}.fg-criu2{fill:#0550ae}\
.fg-on{fill:#ffffff}.fg-refused{fill:#9a6700}.fg-bad{fill:#cf222e}line.fg-refused{stroke:#9a6700}line.fg-bad{stroke:#cf222e}\
.fg-good{fill:#1a7f37}\
@media (prefers-color-scheme:dark){\
.fg-back{fill:#0d1117}.fg-text{fill:#f0f6fc}.fg-dim{fill:#9198a1}.fg-line{stroke:#3d444d}\
.fg-prep{fill:#3d444d}.fg-hold{fill:#238636}.fg-criu{fill:#1f6feb}.fg-criu2{fill:#388bfd}\
.fg-refused{fill:#d29922}.fg-bad{fill:#f85149}\
line.fg-refused{stroke:#d29922}line.fg-bad{stroke:#f85149}.fg-good{fill:#3fb950}}";

/// A file of its own, with the list of what happened.
pub(super) fn document(report: &Report) -> String {
    let lines = list(report);
    let height = LIST + LINE * lines.len() as f64;
    let picture = frame(
        report,
        height,
        &html! {
            (lanes(report))
            @for (number, (class, line)) in lines.iter().enumerate() {
                text class=(class) x="24" y=(LIST + LINE * number as f64) xml:space="preserve" { (line) }
            }
        },
    );
    picture.into_string() + "\n"
}

/// The lanes alone, for a page that has the list as a table.
pub(super) fn picture(report: &Report) -> Markup {
    frame(report, AXIS + 40.0, &lanes(report))
}

fn frame(report: &Report, height: f64, content: &Markup) -> Markup {
    let title = shown(&report.about);
    html! {
        svg xmlns="http://www.w3.org/2000/svg" role="img"
            viewBox={ "0 0 " (WIDTH) " " (height) } width=(WIDTH) height=(height)
            font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="13" {
            title { (title) }
            style { (PreEscaped(STYLE)) }
            rect class="fg-back" width=(WIDTH) height=(height) rx="6" {}
            text x="24" y="32" font-size="15" font-weight="bold" {
                tspan class="fg-text" { (clipped(&title, 84)) ": " }
                tspan class=(verdict_class(report)) { (report.verdict.name()) }
            }
            (content)
        }
    }
}

pub(super) fn verdict_class(report: &Report) -> &'static str {
    report.verdict.pick("fg-good", "fg-text", "fg-bad")
}

/// Where a time lies on the axis.
struct Axis {
    first: SystemTime,
    seconds: f64,
}

impl Axis {
    fn of(report: &Report) -> Option<Self> {
        let (first, last) = report.range()?;
        let seconds = super::seconds(Some(first), last).max(0.001);
        Some(Self { first, seconds })
    }

    fn place(&self, time: SystemTime) -> f64 {
        self.at(super::seconds(Some(self.first), time))
    }

    fn at(&self, seconds: f64) -> f64 {
        let place = LEFT + (RIGHT - LEFT) * seconds / self.seconds;
        (place * 10.0).round() / 10.0
    }

    /// Four to ten round distances from the begin.
    fn ticks(&self) -> Vec<f64> {
        let power = 10f64.powf((self.seconds / 5.0).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = steps.into_iter().find(|step| self.seconds / step <= 9.0);
        let step = step.unwrap_or(self.seconds);
        let count = (self.seconds / step + 1e-9).floor() as usize;
        (0..=count).map(|number| number as f64 * step).collect()
    }
}

fn lanes(report: &Report) -> Markup {
    let Some(axis) = Axis::of(report) else {
        return html! {
            text class="fg-dim" x="24" y=(GUARD) { "no time is known" }
        };
    };
    let decimals = if axis.seconds < 1.0 { 3 } else { 1 };
    html! {
        @for seconds in axis.ticks() {
            @let x = axis.at(seconds);
            line class="fg-line" x1=(x) x2=(x) y1=(GUARD - 6.0) y2=(AXIS) {}
            text class="fg-dim" x=(x) y=(AXIS + 18.0) text-anchor="middle" {
                (format!("{seconds:.decimals$} s"))
            }
        }
        @for (top, name) in [(GUARD, "guard"), (CRIU, "CRIU"), (INTRUDERS, "intruders")] {
            text class="fg-dim" x="24" y=(top + 18.0) { (name) }
        }
        @for (number, span) in report.spans.iter().enumerate() { (bar(&axis, number, span)) }
        @for moment in &report.timeline { (mark(&axis, moment)) }
    }
}

fn bar(axis: &Axis, number: usize, span: &Span) -> Markup {
    let (from, to) = (axis.place(span.from), axis.place(span.to));
    let width = ((to - from).max(1.0) * 10.0).round() / 10.0;
    let (top, class, label_class) = match (span.lane, span.name) {
        (Lane::Guard, "PREPARING") => (GUARD, "fg-prep", "fg-text"),
        (Lane::Guard, _) => (GUARD, "fg-hold", "fg-on"),
        // Neighbours differ.
        (Lane::Criu, _) if number.is_multiple_of(2) => (CRIU, "fg-criu", "fg-on"),
        (Lane::Criu, _) => (CRIU, "fg-criu2", "fg-on"),
    };
    let has_room = span.name.len() as f64 * CHARACTER + 8.0 <= width;
    let seconds = super::seconds(Some(span.from), span.to);
    html! {
        rect class=(class) x=(from) y=(top) width=(width) height=(BAR) rx="2" {
            title { (span.name) (format!(": {seconds:.3} s")) }
        }
        @if has_room {
            text class=(label_class) x=(from + 5.0) y=(top + 18.0) { (span.name) }
        }
    }
}

/// Refusals point upwards to what they wanted; violations reach it.
fn mark(axis: &Axis, moment: &Moment) -> Markup {
    let x = axis.place(moment.time);
    let title = shown(&moment.what);
    let (top, middle, bottom) = (INTRUDERS + 4.0, INTRUDERS + 13.0, INTRUDERS + 22.0);
    let class = match moment.kind {
        Kind::Violation | Kind::Error => "fg-bad",
        _ => "fg-refused",
    };
    match moment.kind {
        Kind::Frozen => html! {
            line class="fg-line" x1=(x) x2=(x) y1=(GUARD) y2=(GUARD + BAR) stroke-width="2" {
                title { (title) }
            }
        },
        Kind::Refused | Kind::Disturbance => html! {
            @if let Some(until) = moment.until {
                line class=(class) x1=(x) x2=(axis.place(until)) y1=(middle) y2=(middle) {}
            }
            path class=(class) d={ "M" (x) " " (top) "l6 18h-12z" } { title { (title) } }
        },
        Kind::Violation => html! {
            line class=(class) x1=(x) x2=(x) y1=(GUARD) y2=(bottom) stroke-width="2" {
                title { (title) }
            }
            @if let Some(until) = moment.until {
                line class=(class) x1=(x) x2=(axis.place(until)) y1=(middle) y2=(middle) {}
            }
            path class=(class) d={ "M" (x - 7.0) " " (top) "h14l-7 18z" } { title { (title) } }
        },
        Kind::Error => html! {
            line class=(class) x1=(x) x2=(x) y1=(CRIU) y2=(CRIU + BAR) stroke-width="2" {
                title { (title) }
            }
        },
        _ => html! {},
    }
}

/// What happened, line by line, each with its class.
fn list(report: &Report) -> Vec<(&'static str, String)> {
    let mut lines = vec![("fg-dim", shown(&report.meaning))];
    for fact in &report.facts {
        add(
            &mut lines,
            "fg-dim",
            &format!("{:<12}", fact.name),
            &fact.value,
        );
    }
    if let Some((first, _)) = report.range() {
        add(&mut lines, "fg-dim", "begin       ", &timestamp(first));
    }
    lines.push(("fg-dim", String::new()));
    for moment in &report.timeline {
        let class = moment.kind.pick("fg-bad", "fg-refused", "fg-text");
        let label = format!("{:>10} s  ", format!("+{:.3}", moment.offset_seconds));
        add(&mut lines, class, &label, &text::what(report, moment));
    }
    for unknown in &report.unknown {
        add(&mut lines, "fg-dim", "not known: ", unknown);
    }
    lines
}

fn add(lines: &mut Vec<(&'static str, String)>, class: &'static str, label: &str, words: &str) {
    let indent = " ".repeat(label.len());
    let wrapped = text::wrapped(words, COLUMNS - label.len()).into_iter();
    lines.extend(wrapped.enumerate().map(|(number, line)| {
        let label = if number == 0 { label } else { &indent };
        (class, shown(&format!("{label}{line}")))
    }));
}

fn clipped(text: &str, width: usize) -> String {
    match text::fitting(text, width) {
        all if all == text.len() => text.to_owned(),
        kept => format!("{}…", &text[..kept]),
    }
}
