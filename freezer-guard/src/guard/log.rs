//! The log of the BPF programs as text.

use freezer_guard_abi::{Act, CgroupKey, LogLevel, LogLine, Protection};

use super::path;
use crate::{kernel::Line, words::escaped};

/// Returns the level and the text of a line.
pub fn sentence(line: &Line) -> (LogLevel, String) {
    let [a, b, c, d] = line.numbers;
    let cgroup = |hierarchy: u64, kernfs_id| {
        let key = CgroupKey::new(hierarchy as u32, kernfs_id);
        escaped(&path(key).display().to_string()).into_owned()
    };
    let Some(kind) = line.line else {
        let text = "the BPF programs of another version tell something";
        return (LogLevel::Warn, text.to_owned());
    };
    let criu = format!("pid {a} executes a criu and gets no guard");
    let text = match kind {
        LogLine::WrongOwner => format!("{criu}: uid {b} owns the file, and root has to"),
        LogLine::WrongMode => format!(
            "{criu}: others than root may write the file (mode {:o})",
            b & 0o7777
        ),
        LogLine::WrongMount => {
            format!("{criu}: the file lies on a mount with nosuid, or of a user")
        }
        LogLine::WrongCredentials => {
            format!("{criu}: as uid {b} it cannot dump the processes of others")
        }
        LogLine::ClaimIsBusy => format!(
            "guard {a} does not take {}: another guard holds it, one above it or one below it, \
             or it lies too deep",
            cgroup(b, c)
        ),
        LogLine::ClaimIsFull => format!(
            "guard {a} does not take {}: there are too many guards or checkpointers, or it lies \
             too deep for a user",
            cgroup(b, c)
        ),
        LogLine::TooDeep => format!(
            "a write of pid {a} to {} is refused: it lies too deep to see whether it is guarded",
            cgroup(b, c)
        ),
        LogLine::UnreadText => format!(
            "a write of pid {a} to {} is refused: the pid that it moves cannot be read",
            cgroup(b, c)
        ),
        LogLine::NoRoom => {
            format!("guard {a}: a fork of pid {b} fails: its holder has too many threads")
        }
        LogLine::Disturbed => format!(
            "guard {a} does not enter CHECKPOINTING: disturbances of `{}` have gone from {c} to {d}",
            Protection::numbered(b as u32)
        ),
        LogLine::Refused => format!(
            "guard {a} refuses pid {b} the act {} about {}",
            Act::ALL
                .get((c >> 32) as usize)
                .map_or("?", |act| act.name()),
            cgroup(c & u64::from(u32::MAX), d)
        ),
    };
    (kind.level(), text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_line_is_one_line_of_text(number in 0..LogLine::ALL.len() + 1, numbers: [u64; 4]) {
            let line = LogLine::ALL.get(number).copied();
            let (level, text) = sentence(&Line { line, numbers });
            prop_assert!(level != LogLevel::Off && !text.chars().any(char::is_control));
        }
    }
}
