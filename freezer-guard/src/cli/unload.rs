//! `freezer-guard unload`: takes the BPF programs out of the kernel.

use std::process::ExitCode;

use freezer_guard::guard;

use super::{error::Result, say::say};

pub(super) fn main() -> Result<ExitCode> {
    match guard::unload()? {
        true => say(format_args!("unloaded the BPF programs and their maps")),
        false => say(format_args!("nothing was loaded")),
    }
    Ok(ExitCode::SUCCESS)
}
