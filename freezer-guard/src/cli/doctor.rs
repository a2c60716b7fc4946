//! `freezer-guard doctor`: can this host do it?

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use freezer_guard::{
    doctor::{self, Bundle, Report, Verdict},
    json::Versioned,
};

use super::{
    error::{Error, Result},
    output,
    say::print,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
    /// Also print the state of each BPF program
    #[arg(short, long, conflicts_with_all = ["json", "bundle"])]
    verbose: bool,
    /// Write facts for a maintainer to FILE, as one JSON object; `-` is standard output
    ///
    /// The object has the version and the configuration of the kernel, what its BTF says of the fields
    /// and functions that matter, the checks, the levels, and the state of each BPF program. It names no
    /// host, user, process or cgroup: a finding that could name one is left out. The builder of the kernel
    /// can choose the text of its release, build and compiler, so read them before you send the file. Only
    /// the owner can read FILE, which must not exist.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    bundle: Option<PathBuf>,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let to_stdout = args.bundle.as_deref() == Some(Path::new("-"));
    if let Some(path) = args.bundle.as_ref().filter(|_| !to_stdout) {
        // The checks take some seconds.
        output::expect_new(path).map_err(|source| not_written(path, source))?;
    }
    let report = doctor::examine();
    let verdict = report.verdict as u8;
    if args.json {
        let text = serde_json::to_string(&Versioned::new(report))?;
        writeln!(io::stdout(), "{text}")?;
    } else if !to_stdout {
        print(&describe(&report, args.verbose))?;
        if let Some(path) = &args.bundle {
            write_bundle(path, report)?;
        }
    } else {
        output::print(bundle(report)?.as_bytes())?;
    }
    Ok(ExitCode::from(verdict))
}

/// The bundle as one line.
fn bundle(report: Report) -> Result<String> {
    Ok(serde_json::to_string(&Versioned::new(Bundle::of(report)))? + "\n")
}

fn not_written(path: &Path, source: io::Error) -> Error {
    Error::Output {
        path: path.to_owned(),
        source,
    }
}

fn write_bundle(path: &Path, report: Report) -> Result<()> {
    let bytes = bundle(report)?;
    output::create(path, bytes.as_bytes()).map_err(|source| not_written(path, source))?;
    let text = format!("\nThe facts for a maintainer are in {}.\n", path.display());
    Ok(print(&text)?)
}

fn describe(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    for check in &report.checks {
        add_check(
            &mut text,
            check.verdict,
            check.name,
            &check.finding,
            check.remedy.as_deref(),
        );
    }
    if verbose {
        text += "\nprogram                  instructions  bytes  misses   calls  hook\n";
        for program in &report.programs {
            let state = match (program.loaded, program.attached) {
                (false, _) => " (not loaded)",
                (true, false) => " (not needed)",
                (true, true) => "",
            };
            text += &format!(
                "{:<25}{:>12} {:>6} {:>7} {:>7}  {}{state}\n",
                program.name,
                number(program.instructions_verified),
                number(program.bytes_jited),
                program.recursion_misses,
                number(program.calls),
                program.hook
            );
        }
    }
    text += match report.verdict {
        Verdict::Good => "\nThis host can guard checkpoints.\n",
        Verdict::Limited => "\nThis host can guard checkpoints, within limits.\n",
        Verdict::Unusable => "\nThis host cannot guard checkpoints.\n",
    };
    text
}

/// Adds a check and its remedy.
pub(super) fn add_check(
    text: &mut String,
    verdict: Verdict,
    name: &str,
    finding: &str,
    remedy: Option<&str>,
) {
    let mark = match verdict {
        Verdict::Good => "ok",
        Verdict::Limited => "LIMIT",
        Verdict::Unusable => "BAD",
    };
    // A string takes everything.
    let _ = writeln!(text, "{mark:<6}{name:<17} {finding}");
    if let Some(remedy) = remedy {
        let _ = writeln!(text, "{:<23} -> {remedy}", "");
    }
}

fn number(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::{Args, main};
    use crate::cli::exit::USAGE;

    /// The checks would take seconds, and would begin guards.
    #[test]
    fn a_bundle_replaces_nothing_and_is_refused_before_the_checks() {
        let temp = tempfile::tempdir().expect("a directory");
        let dir = temp.path();
        let (fifo, file) = (dir.join("fifo"), dir.join("file"));
        mkfifo(&fifo, Mode::S_IRWXU).expect("a pipe");
        fs::write(&file, "old").expect("a file");
        symlink(&fifo, dir.join("to-fifo")).expect("a link");
        symlink(&file, dir.join("to-file")).expect("a link");
        symlink(dir.join("nothing"), dir.join("dangling")).expect("a link");
        for path in [
            fifo,
            file.clone(),
            file.join("below"),
            dir.to_owned(),
            dir.join("to-fifo"),
            dir.join("to-file"),
            dir.join("dangling"),
            dir.join("missing/bundle"),
            dir.join("new/"),
            PathBuf::new(),
            PathBuf::from("/dev/null"),
            PathBuf::from("/dev/stdout"),
        ] {
            let args = Args {
                json: false,
                verbose: false,
                bundle: Some(path.clone()),
            };
            let error = main(&args).expect_err("it is refused");
            assert_eq!(error.code(), USAGE, "{}: {error}", path.display());
        }
        assert_eq!(fs::read(&file).expect("the old one"), b"old");
        assert_eq!(fs::read_dir(dir).expect("a directory").count(), 5);
    }
}
