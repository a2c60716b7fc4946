//! Workloads and writers for the integration tests and the demo.

use std::process::ExitCode;

fn main() -> ExitCode {
    freezer_guard_tests::tool::main()
}
