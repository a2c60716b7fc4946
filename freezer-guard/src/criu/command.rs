//! What CRIU's command line says of the tree it will dump.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

/// Returns the root of the tree that `command` dumps, if it is `criu dump` or `criu
/// pre-dump`, be it behind `strace`, `timeout` or the like.
pub fn dumped_tree(command: &[OsString]) -> Option<i32> {
    let arguments = arguments_of_dump(command)?;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = if word == "-t" || word == "--tree" {
            words.next()?
        } else {
            let word = word.as_bytes();
            let value = word.strip_prefix(b"--tree=");
            match value.or_else(|| word.strip_prefix(b"-t")) {
                Some(value) => OsStr::from_bytes(value),
                None => continue,
            }
        };
        return value.to_str()?.parse().ok();
    }
    None
}

/// Returns whether `command` is such a dump, and its command line names no freezer: CRIU then waits
/// for ever for frozen tasks.
pub fn dumps_without_a_freezer(command: &[OsString]) -> bool {
    arguments_of_dump(command).is_some_and(|arguments| {
        !arguments
            .iter()
            .any(|word| word.as_bytes().starts_with(b"--freeze-cgroup"))
    })
}

fn arguments_of_dump(command: &[OsString]) -> Option<&[OsString]> {
    let is_criu = |word: &OsString| {
        Path::new(word)
            .file_name()
            .is_some_and(|name| name == "criu")
    };
    let arguments = &command[command.iter().position(is_criu)? + 1..];
    let is_dump = |word: &OsString| word == "dump" || word == "pre-dump";
    arguments.iter().any(is_dump).then_some(arguments)
}

#[cfg(test)]
mod tests {
    use super::{dumped_tree, dumps_without_a_freezer};

    #[test]
    fn knows_a_dump_without_a_freezer() {
        let waits = |line: &str| {
            let words: Vec<_> = line.split(' ').map(Into::into).collect();
            dumps_without_a_freezer(&words)
        };
        assert!(waits("criu dump -t 12 -D image"));
        assert!(!waits("criu dump -t 12 --freeze-cgroup /x"));
        assert!(!waits("criu dump -t 12 --freeze-cgroup=/x"));
        assert!(!waits("criu restore -D image"));
        assert!(!waits("runc checkpoint foo"));
    }

    #[test]
    fn finds_the_tree_of_a_dump() {
        let tree = |line: &str| {
            let words: Vec<_> = line.split(' ').map(Into::into).collect();
            dumped_tree(&words)
        };
        for line in [
            "criu dump -t 12 -D image",
            "criu -v4 dump --tree 12",
            "/usr/sbin/criu pre-dump --tree=12 -D image",
            "criu dump -D image -t12",
            "timeout 60 criu dump -t 12",
        ] {
            assert_eq!(tree(line), Some(12), "{line}");
        }
        for line in [
            "criu restore -D image",
            "criu dump -D image",
            "criu dump -t",
            "criu check",
            "runc checkpoint -t 12 foo",
            "bash -c true",
        ] {
            assert_eq!(tree(line), None, "{line}");
        }
    }
}
