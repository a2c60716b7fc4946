//! A report as one HTML page, which loads nothing.

use maud::{DOCTYPE, PreEscaped, html};

use super::{Moment, Report, shown, svg, text};
use crate::{VERSION, words::timestamp};

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2rem auto;padding:0 1rem;\
background:#ffffff;color:#1f2328}\
svg{width:100%;height:auto}\
table{border-collapse:collapse;width:100%;margin:1rem 0}\
th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-top:1px solid #d1d9e0}\
td{overflow-wrap:anywhere}\
.time{text-align:right;white-space:nowrap;font-family:ui-monospace,monospace}\
.good{color:#1a7f37}.refused{color:#9a6700}.bad{color:#cf222e}.dim{color:#59636e}\
@media (prefers-color-scheme:dark){\
body{background:#0d1117;color:#f0f6fc}th,td{border-color:#3d444d}\
.good{color:#3fb950}.refused{color:#d29922}.bad{color:#f85149}.dim{color:#9198a1}}";

/// Nothing may be loaded, and no script runs, even if a name could get into the page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

pub(super) fn page(report: &Report) -> String {
    let about = shown(&report.about);
    let class = report.verdict.pick("good", "", "bad");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (about) ": " (report.verdict.name()) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (about) ": " span class=(class) { (report.verdict.name()) } }
                p { (shown(&report.meaning)) "." }
                (svg::picture(report))
                table {
                    @for fact in &report.facts {
                        tr { th { (fact.name) } td { (shown(&fact.value)) } }
                    }
                    @if let Some((first, _)) = report.range() {
                        tr { th { "begin" } td { (timestamp(first)) } }
                    }
                }
                h2 { "Timeline" }
                table {
                    tr { th class="time" { "after the begin" } th { "of" } th { "event" } }
                    @for moment in &report.timeline {
                        tr class=(class_of(moment)) {
                            td class="time" title=(timestamp(moment.time)) {
                                (format!("{:.3} s", moment.offset_seconds))
                            }
                            td { (moment.kind.word()) }
                            td { (shown(&text::what(report, moment))) }
                        }
                    }
                }
                @if !report.unknown.is_empty() {
                    h2 { "Not known" }
                    ul { @for unknown in &report.unknown { li { (shown(unknown)) } } }
                }
                p class="dim" { "freezer-guard " (VERSION) }
            }
        }
    };
    page.into_string() + "\n"
}

fn class_of(moment: &Moment) -> &'static str {
    moment.kind.pick("bad", "refused", "")
}
