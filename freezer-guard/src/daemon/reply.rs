//! What the interface `io.freezerguard` answers.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use freezer_guard::{
    Kind,
    cgroup::Cgroup,
    guard::{self, Event, Status},
    words,
};
use freezer_guard_abi::GuardId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zlink::{
    ReplyError,
    introspect::{self, CustomType, Type},
};

/// The errors of the interface. The message of each says the reason in words.
#[derive(Debug, Clone, PartialEq, ReplyError, introspect::ReplyError)]
#[zlink(interface = "io.freezerguard")]
pub(crate) enum Error {
    /// Another guard is in the way, or the caller holds too many guards.
    Busy { message: String },
    /// The cgroup is not FROZEN, or does not freeze in time.
    NotFrozen { message: String },
    /// Tasks of the checkpoint are outside of the cgroups, or another process traces them.
    Stray { message: String },
    /// The kernel does not support it, or not at the required level.
    Unsupported { message: String },
    /// The caller has no permission.
    PermissionDenied { message: String },
    /// There is no such guard in force.
    NotGuarded { message: String },
    /// Another process disturbed the cgroup again and again before CHECKPOINTING.
    Disturbed { message: String },
    /// A parameter is wrong.
    BadRequest { message: String },
    /// An internal error.
    Failed { message: String },
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Busy { message }
            | Self::NotFrozen { message }
            | Self::Stray { message }
            | Self::Unsupported { message }
            | Self::PermissionDenied { message }
            | Self::NotGuarded { message }
            | Self::Disturbed { message }
            | Self::BadRequest { message }
            | Self::Failed { message } => message,
        })
    }
}

impl Error {
    /// Returns its kind: it decides over the client's exit code.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Busy { .. } => Kind::Busy,
            Self::NotFrozen { .. } => Kind::NotFrozen,
            Self::Stray { .. } => Kind::Stray,
            Self::Disturbed { .. } => Kind::Disturbed,
            Self::NotGuarded { .. } => Kind::NotGuarded,
            Self::Unsupported { .. } => Kind::Unsupported,
            Self::PermissionDenied { .. } => Kind::Permission,
            Self::BadRequest { .. } => Kind::Request,
            Self::Failed { .. } => Kind::Internal,
        }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::BadRequest { message }
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::PermissionDenied { message }
    }
}

/// One guard.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct OneGuard {
    /// The guard.
    pub(crate) guard: Status,
}

/// Several guards.
#[derive(Debug, Serialize, Deserialize, Type, JsonSchema)]
pub(crate) struct Guards {
    /// The guards: those in force by their ids, those that have ended from the oldest on.
    pub(crate) guards: Vec<Status>,
}

/// The state of a cgroup.
#[derive(Debug, Serialize, Deserialize, Type, JsonSchema)]
pub(crate) struct State {
    /// The path of the cgroup.
    #[serde(serialize_with = "words::text")]
    pub(crate) path: PathBuf,
    /// The path in Base64, if it is not valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) path_base64: Option<String>,
    /// The state of the guard (`PREPARING`, `CHECKPOINTING`), or without a guard that of the
    /// freezer (`THAWED`, `FREEZING`, `FROZEN`).
    pub(crate) state: String,
    /// The guard of the cgroup, or null.
    pub(crate) guard: Option<Status>,
}

impl State {
    /// Asks the kernel. With the id of a guard, the cgroup may have gone.
    pub(crate) fn of(path: &Path, guard: Option<GuardId>) -> Result<Self, guard::Error> {
        let (path, guard, now) = match guard {
            Some(id) => (path.to_owned(), guard::of_id(id)?, "GONE".to_owned()),
            None => {
                let cgroup = Cgroup::open(path)?;
                let now = cgroup.freezer_state()?.to_string();
                (cgroup.path().to_owned(), guard::of_cgroup(&cgroup)?, now)
            }
        };
        Ok(Self {
            path_base64: words::base64(&path),
            path,
            state: guard.as_ref().map_or(now, |guard| guard.state.to_string()),
            guard,
        })
    }
}

/// Events.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct Events {
    /// The events, in their order.
    pub(crate) events: Vec<Event>,
}

/// One check of the host.
#[derive(Debug, Serialize, Deserialize, CustomType)]
pub(crate) struct Check {
    /// The name of the check.
    pub(super) name: String,
    /// The verdict: `good`, `limited` or `unusable`.
    pub(super) verdict: String,
    /// The finding of the check.
    pub(super) finding: String,
    /// The remedy.
    pub(super) remedy: Option<String>,
}

/// All checks of the host.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct Examination {
    /// The verdict of the worst check: `good`, `limited` or `unusable`.
    pub(super) verdict: String,
    /// The release of the kernel.
    pub(super) kernel: String,
    /// The checks, in their order.
    pub(super) checks: Vec<Check>,
}

/// Text.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct Text {
    /// The text.
    pub(super) text: String,
}
