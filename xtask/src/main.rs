//! Everything around the code: set-up, guests, tests, the demo, packages.
//!
//! The only place that knows Debian and QEMU.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

use crate::machine::Machine;

mod bench;
mod book;
mod bpf_stats;
mod build;
mod cache;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "some of it is the guest's, whose library exports it"
)]
#[path = "../../tests/src/config.rs"]
mod config;
mod cross;
mod debian;
mod demo;
mod digest;
mod dist;
mod docs;
mod doctor;
mod ebpf;
mod git;
mod history;
mod image;
mod kernel;
#[cfg(test)]
mod kubernetes;
mod kvm;
#[cfg(test)]
mod layers;
mod lint;
mod machine;
mod matrix;
mod mdbook;
mod object;
mod outcome;
mod packaging_tools;
mod pictures;
mod plot;
mod release;
mod report;
mod schedule;
mod setup;
mod shapes;
mod terminal;
mod test;
mod timeline;
#[path = "../../freezer-guard/build/toolchain.rs"]
mod toolchain;
mod tools;
mod vm;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Sets up, tests, measures, shows and packages freezer-guard"
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Download and compile everything that the other commands need
    Setup,
    /// Check that the BPF programs compile
    Ebpf,
    /// Boot a guest, and run a command or a shell in it
    Vm(vm::Args),
    /// Run the host tests on this machine, and the integration tests in guests
    Test(test::Args),
    /// Show the BPF programs' size and their cost for the verifier, on each kernel
    BpfStats(bpf_stats::Args),
    /// Count the instructions that guards add to operations and dumps
    Bench(bench::Args),
    /// Show a guarded dump, an intruder, and a restore in a guest
    Demo(demo::Args),
    /// Make and check the release files: packages, bill of materials, checksums
    Dist(dist::Args),
    /// Show a bundle of `freezer-guard doctor`, and what this version decides for its facts
    Doctor(doctor::Args),
    /// Build docs/ as a book, in target/docs/book
    Docs(book::Args),
}

fn main() -> ExitCode {
    match try_main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main() -> Result<ExitCode> {
    ensure!(
        std::env::consts::ARCH == Machine::host().uname,
        "xtask runs on {} only, since the tools that it downloads do",
        Machine::host().uname
    );
    match Cli::parse().command {
        Task::Setup => setup::everything().map(|()| ExitCode::SUCCESS),
        Task::Ebpf => ebpf::check().map(|()| ExitCode::SUCCESS),
        Task::Vm(args) => vm::main(args),
        Task::Test(args) => test::main(&args),
        Task::BpfStats(args) => bpf_stats::main(&args),
        Task::Bench(args) => bench::main(&args),
        Task::Demo(args) => demo::main(&args),
        Task::Dist(args) => dist::main(&args).map(|()| ExitCode::SUCCESS),
        Task::Doctor(args) => doctor::main(&args),
        Task::Docs(args) => book::main(&args).map(|()| ExitCode::SUCCESS),
    }
}

/// Runs a command to its end; an error when it fails.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    ensure!(
        status.success(),
        "{} ended with {status}",
        command.get_program().display()
    );
    Ok(())
}
