//! The command line of freezer-guard.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
