//! The daemon's log: to the journal with fields of its own, or else to standard error.

use std::{env, fs, io::IsTerminal as _, os::unix::fs::MetadataExt as _};

use freezer_guard::{guard::sentence, kernel::Line};
use freezer_guard_abi::LogLevel;
use tracing::{debug, error, info, trace, warn};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Whence the lines of the kernel side come, for those who filter them.
const KERNEL: &str = "freezer_guard_kernel";

/// Writes a line of the kernel side.
pub(super) fn kernel(line: &Line) {
    let (level, text) = sentence(line);
    match level {
        LogLevel::Off | LogLevel::Error => error!(target: KERNEL, kind = "kernel", "{text}"),
        LogLevel::Warn => warn!(target: KERNEL, kind = "kernel", "{text}"),
        LogLevel::Info => info!(target: KERNEL, kind = "kernel", "{text}"),
        LogLevel::Debug => debug!(target: KERNEL, kind = "kernel", "{text}"),
        LogLevel::Trace => trace!(target: KERNEL, kind = "kernel", "{text}"),
    }
}

/// Begins it. Called once.
pub(super) fn begin() {
    // How much the kernel side tells was said when it was loaded.
    let levels = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target(KERNEL, LevelFilter::TRACE);
    let registry = tracing_subscriber::registry().with(levels);
    if is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        registry
            .with(
                journal
                    .with_field_prefix(None)
                    .with_syslog_identifier("freezer-guard".to_owned()),
            )
            .init();
        return;
    }
    let colours = std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
    registry
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_target(false)
                .with_ansi(colours),
        )
        .init();
}

/// Whether standard error goes to the journal: `systemd.exec(5)`, `$JOURNAL_STREAM`.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fs::metadata("/proc/self/fd/2")
        .is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}
