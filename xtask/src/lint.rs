//! Lints: clippy, the BPF crate for its own target, rustdoc.

use std::process::Command;

use anyhow::Result;

use crate::{build, ebpf, run};

/// The name of a lint, and its command.
type Lint = (&'static str, fn() -> Result<()>);

const LINTS: [Lint; 4] = [
    ("clippy", || clippy(&["--workspace", "--all-targets"])),
    ("clippy with the feature generate", || {
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
