//! The file from which Node Feature Discovery makes labels of a Kubernetes node.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use freezer_guard::kernel::Levels;

/// How long the file is valid. Without the service, it expires.
const LASTS: Duration = Duration::from_secs(300);

/// The last replacement of the file. Node Feature Discovery begins its work anew at each change.
#[derive(Debug)]
pub(super) struct Written {
    path: PathBuf,
    levels: Levels,
    at: SystemTime,
}

impl Written {
    pub(super) fn new(path: &Path, levels: Levels, at: SystemTime) -> Self {
        let path = path.to_owned();
        Self { path, levels, at }
    }

    /// Whether the file is right, and stays valid for a while.
    pub(super) fn is_enough(&self, path: &Path, levels: &Levels, now: SystemTime) -> bool {
        // The clock may have gone back.
        let age = now.duration_since(self.at).unwrap_or(LASTS);
        self.path == path && path.exists() && self.levels == *levels && age < LASTS / 2
    }
}

/// Returns the contents of the file at this moment: the level is that of the weakest protection.
///
/// The format is that of Node Feature Discovery's source `local`.
pub(super) fn text(levels: &Levels, now: SystemTime) -> String {
    const PREFIX: &str = "feature.node.kubernetes.io/freezer-guard";
    let weakest = levels.iter().min().copied().flatten();
    let level = weakest.map_or("none", |level| level.name());
    let expiry = humantime::format_rfc3339_seconds(now + LASTS);
    let version = env!("CARGO_PKG_VERSION");
    format!("# +expiry-time={expiry}\n{PREFIX}.level={level}\n{PREFIX}.version={version}\n")
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        time::{Duration, SystemTime},
    };

    use freezer_guard_abi::Level;

    use super::{Written, text};

    const ENFORCE: Option<Level> = Some(Level::Enforce);

    #[test]
    fn the_weakest_protection_is_the_level() {
        let first_line = "# +expiry-time=1970-01-01T00:06:40Z\n";
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        for (levels, level) in [
            ([ENFORCE; 4], "enforce"),
            ([ENFORCE, Some(Level::Detect), ENFORCE, ENFORCE], "detect"),
            ([ENFORCE, None, Some(Level::Detect), ENFORCE], "none"),
        ] {
            let text = text(&levels, now);
            assert!(text.starts_with(first_line), "{text}");
            assert!(
                text.contains(&format!("/freezer-guard.level={level}\n")),
                "{text}"
            );
        }
    }

    #[test]
    fn it_is_written_again_for_a_change_and_before_it_expires() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (path, levels) = (Path::new("/"), [ENFORCE; 4]);
        let written = Written::new(path, levels, at(1000));
        assert!(written.is_enough(path, &levels, at(1149)));
        assert!(!written.is_enough(path, &levels, at(1150)));
        assert!(!written.is_enough(path, &levels, at(999)));
        assert!(!written.is_enough(Path::new("/dev"), &levels, at(1001)));
        assert!(!written.is_enough(path, &[None; 4], at(1001)));
        let gone = Path::new("/dev/null/gone");
        assert!(!Written::new(gone, levels, at(1000)).is_enough(gone, &levels, at(1001)));
    }
}
