//! The command line of freezer-guard.

mod cli;
mod daemon;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
