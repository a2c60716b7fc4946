//! `/etc/freezer-guard/config.toml`.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use freezer_guard::{
    guard::automatic::{Requirements, default_names},
    words,
};
use freezer_guard_abi::{FileName, Level, LogLevel, MAX_CHECKPOINTERS, NoSuchName, Protection};
use serde::{
    Deserialize, Deserializer,
    de::{self, Error as _},
};

/// Where it is looked for.
pub(crate) const PATH: &str = "/etc/freezer-guard/config.toml";

/// What an administrator can choose. Everything has a default.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The weakest level that will do for a guard that the daemon begins.
    #[serde(deserialize_with = "level")]
    pub(crate) require: Level,
    /// Besides root, the members of this group may use the interface. It need not
    /// exist.
    pub(crate) group: String,
    pub(crate) automatic: Automatic,
    pub(crate) users: Users,
    pub(crate) units: Units,
    pub(crate) metrics: Metrics,
    pub(crate) log: Log,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// How much the kernel side tells of why it does what it does.
    #[serde(deserialize_with = "log_level")]
    pub(crate) kernel: LogLevel,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Automatic {
    /// Guard what a checkpointer writes that nobody has put under a guard.
    pub(crate) enabled: bool,
    /// The file names of programs that are checkpointers.
    #[serde(deserialize_with = "file_names")]
    pub(crate) names: Vec<FileName>,
    /// The protections that are lifted then.
    #[serde(deserialize_with = "protections")]
    pub(crate) allow: Vec<Protection>,
    /// Whether checkpointers of users have such guards too. A guard of a user refuses
    /// nothing to tasks with authority over him.
    pub(crate) users: bool,
    pub(crate) on_violation: OnViolation,
    /// The service warns of a dump that takes longer.
    #[serde(deserialize_with = "limit")]
    pub(crate) warn_after: Option<Duration>,
    /// The service kills a checkpointer that takes longer, and ends its guard.
    #[serde(deserialize_with = "limit")]
    pub(crate) timeout: Option<Duration>,
}

/// What becomes of a dump under an automatic guard that was violated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnViolation {
    /// CRIU cannot complete the image: its dump fails, and the container goes on.
    Fail,
    /// The journal and the metrics report it.
    Warn,
}

/// Limits for the guards of users, which they begin or which their checkpointers have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Users {
    /// The service ends a guard that is held for longer, whatever its holder does.
    #[serde(deserialize_with = "duration")]
    pub(crate) longest_hold: Duration,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            longest_hold: Duration::from_secs(600),
        }
    }
}

/// About units of systemd.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Units {
    /// At the end of a guard that has refused the stop of a unit, kill the rest of that unit.
    pub(crate) finish_stops: bool,
}

impl Default for Units {
    fn default() -> Self {
        Self { finish_stops: true }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// A file for the textfile collector of node_exporter; empty for none.
    pub(crate) textfile: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            require: Level::BestEffort,
            group: "freezer-guard".to_owned(),
            automatic: Automatic::default(),
            users: Users::default(),
            units: Units::default(),
            metrics: Metrics::default(),
            log: Log::default(),
        }
    }
}

impl Default for Automatic {
    fn default() -> Self {
        Self {
            enabled: true,
            names: default_names(),
            allow: Vec::new(),
            users: false,
            on_violation: OnViolation::Fail,
            warn_after: Some(Duration::from_secs(300)),
            timeout: None,
        }
    }
}

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        path: PathBuf,
        line: usize,
        message: String,
    },
}

impl Config {
    /// Reads it. Without the file everything is as by default.
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == ErrorKind::NotFound && path == Path::new(PATH) => {
                Ok(Self::default())
            }
            Err(source) => Err(Error::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            Error::Parse {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })
    }

    /// What automatic guards are to be like; `None`: there are to be none.
    pub(crate) fn automatic(&self) -> Option<Requirements> {
        self.automatic.enabled.then(|| Requirements {
            names: self.automatic.names.clone(),
            allowed: self.automatic.allow.clone(),
            users: self.automatic.users,
            completes_violated: self.automatic.on_violation == OnViolation::Warn,
        })
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    words::duration(&text).map_err(|error| D::Error::custom(format!("{text:?} {error}")))
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match &*text {
        "off" => Ok(None),
        text => words::duration(text)
            .map(Some)
            .map_err(|error| D::Error::custom(format!("{text:?} {error}"))),
    }
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Level, D::Error> {
    named(String::deserialize(deserializer)?)
}

fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LogLevel, D::Error> {
    named(String::deserialize(deserializer)?)
}

fn protections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Protection>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    names.into_iter().map(named).collect()
}

fn file_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<FileName>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    if names.is_empty() || names.len() > MAX_CHECKPOINTERS as usize {
        return Err(D::Error::custom(format!(
            "{} names: there are 1 to {MAX_CHECKPOINTERS}",
            names.len()
        )));
    }
    let name = |text: String| {
        FileName::new(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is no file name of at most {} bytes",
                FileName::LONGEST
            ))
        })
    };
    names.into_iter().map(name).collect()
}

fn named<T: FromStr<Err = NoSuchName>, E: de::Error>(name: String) -> Result<T, E> {
    name.parse()
        .map_err(|error| E::custom(format!("{name:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Config, Level, Protection};

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
        let text = include_str!("../../../packaging/config.toml");
        assert_eq!(parse(text), Ok(Config::default()));
        let uncommented: String = text
            .lines()
            .filter_map(|line| match line.strip_prefix('#') {
                Some(line) if line.starts_with(|first: char| first.is_ascii_lowercase()) => {
                    Some(line)
                }
                Some(_) => None,
                None => Some(line),
            })
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(uncommented.contains("enabled = true"), "{uncommented}");
        assert_eq!(parse(&uncommented), Ok(Config::default()));
    }
}
