//! Lints: clippy, the BPF crate for its own target, rustdoc.

use anyhow::Result;

use crate::{build, ebpf, run};

/// The name of a lint, and its command.
type Lint = (&'static str, fn() -> Result<()>);

const LINTS: [Lint; 4] = [
    ("clippy", || clippy(&["--all-targets"])),
    // For the whole workspace, so that the crates it depends on need not be checked again.
    ("clippy with the feature generate", || {
        clippy(&["--features", "freezer-guard/generate"])
    }),
    ("the BPF crate", ebpf::check),
    ("rustdoc", || {
        run(build::cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"))
    }),
];

/// Runs them all; returns a sentence for each that fails.
pub(crate) fn failures() -> Vec<String> {
    let results = LINTS.map(|(name, lint)| {
        println!("host: lint: {name}");
        lint().map_err(|error| format!("{name}: {error:#}"))
    });
    results.into_iter().filter_map(Result::err).collect()
}

fn clippy(arguments: &[&str]) -> Result<()> {
    run(build::cargo()
        .args(["clippy", "--workspace", "--locked"])
        .args(arguments)
        .args(["--", "-D", "warnings"]))
}
