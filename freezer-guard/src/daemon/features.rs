//! The file from which Node Feature Discovery makes labels of a Kubernetes node.

use std::time::{Duration, SystemTime};

use freezer_guard::kernel::Levels;

/// How long the file says what is so. The service replaces it every 10 seconds: without the service, the
/// labels go.
const LASTS: Duration = Duration::from_secs(300);

/// Returns the contents of the file at this moment: the level is that of the weakest protection.
///
/// The format is that of Node Feature Discovery's source `local`.
pub(super) fn text(levels: &Levels, now: SystemTime) -> String {
    let weakest = levels.iter().min().copied().flatten();
    let level = weakest.map_or("none", |level| level.name());
    let expiry = humantime::format_rfc3339_seconds(now + LASTS);
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "# +expiry-time={expiry}\nfreezer-guard.level={level}\nfreezer-guard.version={version}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use freezer_guard_abi::Level;

    use super::text;

    #[test]
    fn the_weakest_protection_is_the_level() {
        let first_line = "# +expiry-time=1970-01-01T00:06:40Z\n";
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let enforce = Some(Level::Enforce);
        for (levels, level) in [
            ([enforce; 4], "enforce"),
            ([enforce, Some(Level::Detect), enforce, enforce], "detect"),
            ([enforce, None, Some(Level::Detect), enforce], "none"),
        ] {
            let text = text(&levels, now);
            assert!(text.starts_with(first_line), "{text}");
            assert!(
                text.contains(&format!("\nfreezer-guard.level={level}\n")),
                "{text}"
            );
        }
    }
}
