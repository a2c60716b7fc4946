//! What each change passes besides its tests: clippy, the BPF crate, rustdoc.

use std::process::Command;

use anyhow::Result;

use crate::{build, ebpf, run};

/// A lint, and how to run it.
type Lint = (&'static str, fn() -> Result<()>);

const LINTS: [Lint; 4] = [
    ("clippy", || clippy(&["--workspace", "--all-targets"])),
    ("clippy of what writes man pages", || {
        clippy(&["--package", "freezer-guard", "--features", "generate"])
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
    let mut cargo: Command = build::cargo();
    cargo.arg("clippy").args(arguments);
    run(cargo.args(["--locked", "--", "-D", "warnings"]))
}
