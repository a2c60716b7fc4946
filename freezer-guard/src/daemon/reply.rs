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
use serde::{Deserialize, Serialize};
use zlink::{
    ReplyError,
    introspect::{self, CustomType, Type},
};

/// Why something was not done. Each says it in words.
#[derive(Debug, Clone, PartialEq, ReplyError, introspect::ReplyError)]
#[zlink(interface = "io.freezerguard")]
pub(crate) enum Error {
    /// Another guard is in the way.
    Busy { message: String },
    /// The cgroup is not FROZEN, or cannot be frozen.
    NotFrozen { message: String },
    /// Tasks of the checkpoint are elsewhere, or are being traced.
    Stray { message: String },
    /// The kernel cannot do it, or not as far as is required.
    Unsupported { message: String },
    /// The caller may not do that.
    PermissionDenied { message: String },
    /// There is no such guard.
    NotGuarded { message: String },
    /// Somebody disturbed it before it was CHECKPOINTING.
    Disturbed { message: String },
    /// Something that was asked for makes no sense.
    BadRequest { message: String },
    /// Something else went wrong.
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

/// A guard.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct OneGuard {
    pub(crate) guard: Status,
}

/// Guards.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct Guards {
    pub(crate) guards: Vec<Status>,
}

/// What became of a cgroup.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct State {
    #[serde(serialize_with = "words::text")]
    pub(crate) path: PathBuf,
    /// The same in Base64, if it is no text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) path_base64: Option<String>,
    pub(crate) state: String,
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

/// What has happened.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct Events {
    pub(crate) happenings: Vec<Event>,
}

/// What the doctor has found.
#[derive(Debug, Serialize, Deserialize, CustomType)]
pub(crate) struct Check {
    pub(super) name: String,
    pub(super) verdict: String,
    pub(super) finding: String,
    pub(super) remedy: Option<String>,
}

/// What the doctor says.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct Examination {
    pub(super) verdict: String,
    pub(super) kernel: String,
    pub(super) checks: Vec<Check>,
}

/// Text.
#[derive(Debug, Serialize, Deserialize, Type)]
pub(crate) struct Text {
    pub(super) text: String,
}
