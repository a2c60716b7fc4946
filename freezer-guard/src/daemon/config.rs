//! `/etc/freezer-guard/config.toml`.

pub(crate) mod keys;
#[cfg(test)]
mod tests;

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
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{self, Error as _},
};

/// Where it is looked for.
pub(crate) const PATH: &str = "/etc/freezer-guard/config.toml";

/// The configuration. Every key has a default.
///
/// The doc comments and attributes of the keys are their documentation: [`keys`] makes the manual
/// page, the installed file and the chapter of the book from them.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The weakest level that is enough for a guard that begins over the socket, if the call does
    /// not say `require`. The call fails if the host cannot reach that level. `enforce`: no access
    /// gets past the guard that the guard can refuse. `best-effort`: a preemptible kernel may let one through, and the
    /// guard detects it. `detect`: the guard refuses nothing, and detects all.
    #[serde(deserialize_with = "level")]
    #[schemars(with = "String", extend("enum" = Level::NAMES, "default" = "best-effort", "example" = "enforce"))]
    pub(crate) require: Level,
    /// The name or the number of a group. Its members may do everything over the socket, as root
    /// may. The group need not exist. (The group that may connect to the socket is in
    /// freezer-guard.socket.)
    #[schemars(extend("default" = "freezer-guard", "example" = "criu"))]
    pub(crate) group: String,
    /// Automatic guards: the service guards each checkpoint that no other guard covers.
    pub(crate) automatic: Automatic,
    /// Guards of users who are not root.
    pub(crate) users: Users,
    /// Units of systemd.
    pub(crate) units: Units,
    /// Metrics for a monitoring system, and the level for Kubernetes.
    pub(crate) metrics: Metrics,
    /// Diagnostics.
    pub(crate) log: Log,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// How much the BPF programs log of their decisions. `warn` logs each checkpoint without a
    /// guard, `debug` also the reason why a `criu` is no checkpointer, `trace` also each refusal.
    /// The lines are in the journal with `KIND=kernel`. A change takes effect when no guard is in
    /// force.
    #[serde(deserialize_with = "log_level")]
    #[schemars(with = "String", extend("enum" = LogLevel::NAMES, "default" = "off", "example" = "debug"))]
    pub(crate) kernel: LogLevel,
}

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Automatic {
    /// Whether the service guards each checkpoint that no other guard covers. The guard begins when
    /// the checkpointer freezes a cgroup, and ends when it has detached from the last task.
    #[schemars(extend("default" = true, "example" = false))]
    pub(crate) enabled: bool,
    /// The file names of the programs that are checkpointers: 1 to 16 names of at most 31 bytes. If
    /// your `criu` is a script or a wrapper, add the last program that it executes, such as
    /// `.criu-wrapped` on NixOS.
    #[serde(deserialize_with = "file_names")]
    #[schemars(with = "Vec<String>", extend("default" = ["criu"], "example" = ["criu", ".criu-wrapped"]))]
    pub(crate) names: Vec<FileName>,
    /// The protections that automatic guards do not have. The guard neither refuses nor detects
    /// the accesses that they cover.
    #[serde(deserialize_with = "protections")]
    #[schemars(with = "Vec<String>", extend("items" = names_of(&Protection::NAMES), "default" = [], "example" = ["ptrace"]))]
    pub(crate) allow: Vec<Protection>,
    /// Whether the service also guards the checkpoints of users whose CRIU has none of
    /// CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE on the host. Such a guard refuses
    /// nothing to root and to other processes with authority over the user.
    #[schemars(extend("default" = false, "example" = true))]
    pub(crate) users: bool,
    /// The effect of a violation. `fail`: CRIU cannot write the rest of its image, so the dump fails
    /// and the container goes on. `warn`: CRIU completes its image, and the journal and the metrics
    /// report that you must not trust it.
    #[schemars(extend("default" = "fail", "example" = "warn"))]
    pub(crate) on_violation: OnViolation,
    /// The time after which the service warns of a dump or restore that still runs: once in the
    /// journal, and in the metric `freezer_guard_long_dumps_total`. `off` never warns.
    #[serde(deserialize_with = "limit")]
    #[schemars(with = "String", extend("format" = LIMIT, "default" = "5m", "example" = "off"))]
    pub(crate) warn_after: Option<Duration>,
    /// The time after which the service kills the checkpointer of a dump or restore with SIGKILL and ends
    /// its guard. The tasks of a dump usually go on; a task in which CRIU was running code can crash.
    /// `off` never kills.
    #[serde(deserialize_with = "limit")]
    #[schemars(with = "String", extend("format" = LIMIT, "default" = "off", "example" = "30m"))]
    pub(crate) timeout: Option<Duration>,
}

/// The effect of a violation on a dump under an automatic guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum OnViolation {
    /// CRIU cannot complete the image: its dump fails, and the container goes on.
    Fail,
    /// The journal and the metrics report the violation.
    Warn,
}

/// Limits for the guards of users, which they begin or which their checkpointers have.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Users {
    /// The longest time that a user may hold a guard. Then the service ends the guard, even if its
    /// holder is still running.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "String", extend("format" = TIME, "default" = "10m", "example" = "1h 30m"))]
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
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Units {
    /// Whether the service finishes the stop of a unit at the end of a guard. If a guard refuses
    /// systemd's SIGKILL, systemd gives the unit up, and the next start of the unit would make a
    /// second instance beside the first. So the service has systemd kill the rest of such a unit.
    #[schemars(extend("default" = true, "example" = false))]
    pub(crate) finish_stops: bool,
}

impl Default for Units {
    fn default() -> Self {
        Self { finish_stops: true }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// The path of a file in Prometheus's text format, for the textfile collector of node_exporter.
    /// The service replaces it every 10 seconds. An empty path writes no file. Another directory
    /// than that of the example needs `ReadWritePaths=` in a drop-in of freezer-guard.service.
    #[schemars(extend("default" = "", "example" = "/var/lib/prometheus/node-exporter/freezer-guard.prom"))]
    pub(crate) textfile: PathBuf,
    /// The path of a file for Node Feature Discovery, which makes labels of a Kubernetes node:
    /// `feature.node.kubernetes.io/freezer-guard.level` has the level of the weakest protection, or
    /// `none`. The file expires after five minutes without the service. An empty path writes no file. Outside
    /// of a container, the directory has to exist, and needs `ReadWritePaths=` in a drop-in of
    /// freezer-guard.service.
    #[schemars(extend("default" = "", "example" = "/etc/kubernetes/node-feature-discovery/features.d/freezer-guard"))]
    pub(crate) node_features: PathBuf,
}

/// The type of a time.
const TIME: &str = "time";
/// The type of a time that may be `off`.
const LIMIT: &str = "time or \"off\"";

/// The JSON schema of one of these names.
fn names_of(names: &[&str]) -> serde_json::Value {
    serde_json::json!({ "type": "string", "enum": names })
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
