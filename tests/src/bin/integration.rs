//! The integration tests: runs in a guest, on the cgroup layout it finds there.

use std::process::ExitCode;

fn main() -> ExitCode {
    freezer_guard_tests::integration::main()
}
