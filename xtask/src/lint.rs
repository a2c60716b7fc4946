//! Lints: clippy, the BPF crate for its own target, rustdoc, the book, the release
//! files.

use anyhow::Result;

use crate::{book, build, dist, ebpf, run};

/// The name of a lint, and its command.
type Lint = (&'static str, fn() -> Result<()>);

const LINTS: [Lint; 5] = [
    ("clippy", || {
        run(build::cargo()
            .args(["clippy", "--workspace", "--all-targets", "--locked"])
            .args(["--", "-D", "warnings"]))
    }),
    ("the BPF crate", ebpf::check),
    ("rustdoc", || {
        run(build::cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"))
    }),
    ("the book", || book::check().map(|_| ())),
    ("the release files", dist::check),
];

/// Runs them all; returns a sentence for each that fails.
pub(crate) fn failures() -> Vec<String> {
    let results = LINTS.map(|(name, lint)| {
        println!("host: lint: {name}");
        lint().map_err(|error| format!("{name}: {error:#}"))
    });
    results.into_iter().filter_map(Result::err).collect()
}
