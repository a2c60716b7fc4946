//! A holder that forks as much as it can.

use std::{process::Command, thread};

use anyhow::{Context as _, Result, ensure};

/// 20 threads, each of which starts 20 processes that end at once, two of
/// them by way of a grandchild.
pub(super) fn storm() -> Result<()> {
    let threads: Vec<_> = (0..20)
        .map(|_| {
            thread::spawn(|| -> Result<()> {
                for round in 0..20 {
                    let mut command = Command::new("bash");
                    command.args([
                        "-c",
                        if round % 10 == 0 {
                            "bash -c true & :"
                        } else {
                            "true"
                        },
                    ]);
                    ensure!(
                        command.status().context("run bash")?.success(),
                        "bash failed"
                    );
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().ok().context("a thread panicked")??;
    }
    Ok(())
}
