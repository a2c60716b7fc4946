//! `freezer-guard report`: one checkpoint as a timeline.

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::{Duration, SystemTime},
};

use freezer_guard::{
    guard::Status,
    json::Versioned,
    report::{JournalLine, Report, Sources, journal_line, of_guard, of_image},
    words::time_of,
};

use super::{
    client,
    error::{Error, Result},
    output, status,
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    form: Form,
    /// Write to this file instead of standard output
    ///
    /// The file appears, or is replaced, in one step. A symbolic link to a file is refused, and so is a
    /// block device; a pipe or a character device such as /dev/stdout is written to.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Report on this image of `freezer-guard checkpoint`, good or not
    image_dir: Option<PathBuf>,
    /// Report on the guard that ended last, or on the Nth from the end: the service keeps the last 64
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    last: Option<u32>,
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct Form {
    /// Draw an SVG picture
    #[arg(long)]
    svg: bool,
    /// Write one HTML page without any other file
    #[arg(long)]
    html: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let report = match (&args.what.image_dir, args.what.last) {
        (Some(dir), _) => of_image(Sources::read(dir)?),
        (None, number) => {
            let guard = remembered(number.unwrap_or(1) as usize)?;
            let journal = journal(&guard);
            of_guard(guard, journal.as_deref())
        }
    };
    let text = args.form.render(&report)?;
    match &args.output {
        Some(path) => output::write(path, text.as_bytes()).map_err(|source| Error::Output {
            path: path.clone(),
            source,
        })?,
        None => output::print(text.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Form {
    fn render(&self, report: &Report) -> Result<String> {
        Ok(match self {
            Self { svg: true, .. } => report.to_svg(),
            Self { html: true, .. } => report.to_html(),
            Self { json: true, .. } => serde_json::to_string(&Versioned::new(report))? + "\n",
            _ => report.to_text(),
        })
    }
}

/// The guard that ended last is the first.
fn remembered(wanted: usize) -> Result<Status> {
    let mut guards = client::block_on(status::last())?;
    let known = guards.len();
    match known.checked_sub(wanted) {
        Some(place) => Ok(guards.swap_remove(place)),
        None => Err(Error::NotRemembered { known, wanted }),
    }
}

/// What the service and `freezer-guard end` have logged about a guard, if the journal can be read.
/// Root's lines only: any user may log under our name.
fn journal(guard: &Status) -> Option<Vec<JournalLine>> {
    let mut lines = logged(&[format!("GUARD={}", guard.id)])?;
    // `end` logs by syslog(3), without the id of the guard.
    let Some(begun) = time_of(&guard.begun) else {
        return Some(lines);
    };
    let held = Duration::try_from_secs_f64(guard.held_seconds).unwrap_or_default();
    let since = begun.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().as_secs();
    let until = since.saturating_add(held.as_secs()).saturating_add(10);
    let ends = logged(&[
        "_TRANSPORT=syslog".to_owned(),
        format!("--since=@{since}"),
        format!("--until=@{until}"),
    ]);
    let ends = ends.into_iter().flatten();
    lines.extend(ends.filter(|line| line.ends_by_force(guard)));
    Some(lines)
}

/// The lines of root under our name for which this holds.
fn logged(conditions: &[String]) -> Option<Vec<JournalLine>> {
    let output = Command::new("journalctl")
        .args(["--quiet", "--no-pager", "-t", "freezer-guard", "-o", "json"])
        .arg("_UID=0")
        .args(conditions)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output
        .status
        .success()
        .then(|| text.lines().filter_map(journal_line).collect())
}
