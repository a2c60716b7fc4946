//! What CRIU's command line says of the tree it will dump.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

/// The root of the tree that `command` dumps, if it is `criu dump` or `criu
/// pre-dump`, be it behind `strace`, `timeout` or the like.
pub fn dumped_tree(command: &[OsString]) -> Option<i32> {
    let is_criu = |word: &OsString| {
        Path::new(word)
            .file_name()
            .is_some_and(|name| name == "criu")
    };
    let arguments = &command[command.iter().position(is_criu)? + 1..];
    if !arguments
        .iter()
        .any(|word| word == "dump" || word == "pre-dump")
    {
        return None;
    }
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

#[cfg(test)]
mod tests {
    use super::dumped_tree;

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
