//! The daemon's log: to the journal with fields of its own, or else to standard error.

use std::{env, fs, io::IsTerminal as _, os::unix::fs::MetadataExt as _};

use tracing_subscriber::{
    filter::LevelFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Begins it. Called once.
pub(super) fn begin() {
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
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
