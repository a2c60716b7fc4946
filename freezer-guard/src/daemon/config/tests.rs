//! Reading the configuration, and its description.

use std::path::Path;

use freezer_guard_abi::{FileName, MAX_CHECKPOINTERS};

use super::{
    Config, Level, Protection,
    keys::{Key, keys},
};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("config.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn what_is_not_said_is_as_by_default() {
    assert_eq!(parse(""), Ok(Config::default()));
    let output = parse("require = \"enforce\"\n[automatic]\nallow = [\"ptrace\"]\n");
    let mut expected = Config {
        require: Level::Enforce,
        ..Config::default()
    };
    expected.automatic.allow = vec![Protection::Ptrace];
    assert_eq!(output, Ok(expected));
}

#[test]
fn an_error_names_its_line() {
    for (text, line, what) in [
        ("group = \"a\"\nfoo = 1\n", 2, "unknown field `foo`"),
        (
            "\n[automatic]\nenable = true\n",
            3,
            "unknown field `enable`",
        ),
        (
            "require = \"most\"\n",
            1,
            "\"most\": there is no such level: it is one of detect, best-effort, enforce",
        ),
        (
            "[automatic]\nallow = [\"x\"]\n",
            2,
            "there is no such protection: it is one of freeze, kill, migrate, ptrace",
        ),
        ("[users]\nlongest_hold = \"long\"\n", 2, "is no time"),
        (
            "[users]\nlongest_hold = \"9000y\"\n",
            2,
            "longer than a year",
        ),
        (
            "[automatic]\non_violation = \"x\"\n",
            2,
            "expected `fail` or `warn`",
        ),
        ("[automatic]\ntimeout = \"never\"\n", 2, "is no time"),
        ("[automatic]\nnames = []\n", 2, "0 names: there are 1 to 16"),
        ("[automatic]\nnames = [\"a/b\"]\n", 2, "is no file name"),
        ("group = 1\n", 1, "invalid type"),
        ("group = \n", 1, ""),
    ] {
        let error = parse(text).expect_err(text);
        let start = format!("config.toml:{line}: ");
        assert!(error.starts_with(&start) && error.contains(what), "{error}");
    }
}

/// The file that is installed says what is so without it.
#[test]
fn the_installed_file_holds_the_defaults() {
    let text = include_str!("../../../../packaging/config.toml");
    assert_eq!(parse(text), Ok(Config::default()));
    let uncommented: String = text
        .lines()
        .filter_map(|line| match line.strip_prefix('#') {
            Some(line) if line.starts_with(|first: char| first.is_ascii_lowercase()) => Some(line),
            Some(_) => None,
            None => Some(line),
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(uncommented.contains("enabled = true"), "{uncommented}");
    assert_eq!(parse(&uncommented), Ok(Config::default()));
}

/// Each key in a file of its own.
fn file(key: &Key, value: &str) -> String {
    let table = match &*key.table {
        "" => String::new(),
        table => format!("[{table}]\n"),
    };
    format!("{table}{} = {value}\n", key.name)
}

#[test]
fn the_described_defaults_and_examples_are_right() {
    let keys = keys();
    assert!(keys.len() > 10, "{keys:?}");
    for key in keys {
        let (default, example) = (file(&key, &key.default), file(&key, &key.example));
        assert_eq!(parse(&default), Ok(Config::default()), "{default}");
        let other = parse(&example).expect(&example);
        assert_ne!(other, Config::default(), "{example}");
        assert!(key.text.ends_with(['.', ')']), "{key:?}");
        assert!(!key.kind.is_empty(), "{key:?}");
    }
}

#[test]
fn the_documentation_names_the_limits() {
    let keys = keys();
    let names = keys.iter().find(|key| key.path() == "automatic.names");
    let text = format!(
        "1 to {MAX_CHECKPOINTERS} names of at most {} bytes",
        FileName::LONGEST
    );
    assert!(names.is_some_and(|key| key.text.contains(&text)), "{text}");
}
