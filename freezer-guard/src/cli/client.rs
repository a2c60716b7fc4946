//! The daemon, as a client sees it: for those who may not use BPF themselves, and
//! for all others the one place that knows what has been.

#![expect(
    clippy::too_many_arguments,
    reason = "each is a parameter of the interface"
)]

use std::{fs::File, io::ErrorKind, os::fd::OwnedFd, time::Duration};

use freezer_guard::{
    guard::{self, Status},
    kernel::may_use_bpf,
};
use freezer_guard_abi::GuardId;
use nix::unistd::getuid;
use tokio_stream::Stream;
use zlink::{proxy, tokio::unix};

use super::error::{Error, Result};
use crate::daemon::{
    reply::{self, Events, Guards, OneGuard, State},
    varlink::SOCKET,
};

/// How long the daemon may take to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

#[proxy("io.freezerguard")]
pub(super) trait Daemon {
    async fn list(&mut self) -> zlink::Result<Result<Guards, reply::Error>>;
    async fn list_ended(&mut self) -> zlink::Result<Result<Guards, reply::Error>>;
    async fn status(
        &mut self,
        cgroup: &str,
        guard: Option<GuardId>,
    ) -> zlink::Result<Result<State, reply::Error>>;
    async fn end(
        &mut self,
        cgroup: Option<&str>,
        guard: Option<GuardId>,
        force: bool,
    ) -> zlink::Result<Result<OneGuard, reply::Error>>;
    async fn verify(
        &mut self,
        cgroups: Vec<String>,
        pid: Option<i64>,
    ) -> zlink::Result<Result<(), reply::Error>>;
    async fn begin(
        &mut self,
        cgroups: Option<Vec<String>>,
        freeze: bool,
        #[zlink(rename = "freezeTimeoutSeconds")] freeze_timeout_seconds: f64,
        pid: Option<i64>,
        allow: Vec<String>,
        require: String,
        #[zlink(fds)] proofs: Vec<OwnedFd>,
    ) -> zlink::Result<Result<OneGuard, reply::Error>>;
    #[zlink(more)]
    async fn monitor(
        &mut self,
    ) -> zlink::Result<impl Stream<Item = zlink::Result<Result<Events, reply::Error>>>>;
}

/// The daemon, if it is there.
pub(super) async fn connect() -> Result<Option<unix::Connection>> {
    match unix::connect(SOCKET).await {
        Ok(connection) => Ok(Some(connection)),
        Err(zlink::Error::Io(error))
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(zlink::Error::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
            let uid = getuid();
            let message = format!(
                "uid {uid} may not connect to {SOCKET}: it takes root, or a member of its group \
                 (freezer-guard, by default)"
            );
            Err(reply::Error::PermissionDenied { message }.into())
        }
        Err(error) => Err(Error::no_answer(format!("connect to {SOCKET}"))(error)),
    }
}

/// Waits for the daemon's answer.
pub(super) async fn answer<T>(
    call: impl Future<Output = zlink::Result<Result<T, reply::Error>>>,
) -> Result<T> {
    answer_within(TIMEOUT, call).await
}

/// Waits for it so long.
pub(super) async fn answer_within<T>(
    timeout: Duration,
    call: impl Future<Output = zlink::Result<Result<T, reply::Error>>>,
) -> Result<T> {
    let silent = "the service does not answer: see `systemctl status freezer-guard`";
    let reply = tokio::time::timeout(timeout, call)
        .await
        .map_err(|elapsed| Error::io(silent)(elapsed.into()))?
        .map_err(Error::no_answer(silent))?;
    Ok(reply?)
}

/// What the daemon answers, or else what the kernel does: there may be no daemon,
/// or none that answers, and whoever may use BPF himself needs none.
pub(super) async fn ask<T>(
    daemon: impl AsyncFnOnce(&mut unix::Connection) -> Result<T>,
    kernel: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(mut connection) = connect().await? else {
        return kernel();
    };
    match daemon(&mut connection).await {
        Err(error) if !matches!(error, Error::Service(_)) && may_use_bpf().is_ok() => kernel(),
        answer => answer,
    }
}

/// What the daemon answers; without an answer of its own this fails.
pub(super) async fn ask_daemon<T>(
    daemon: impl AsyncFnOnce(&mut unix::Connection) -> Result<T>,
) -> Result<T> {
    let mut connection = connect().await?.ok_or(Error::NoService)?;
    daemon(&mut connection).await
}

/// Returns the guards in force.
pub(super) async fn list() -> Result<Vec<Status>> {
    ask(
        async |daemon| Ok(answer(daemon.list()).await?.guards),
        || Ok(guard::list()?),
    )
    .await
}

/// Checks that there is room for descriptors: tokio panics where it gets none.
fn check_descriptors() -> Result<()> {
    /// The maps, the programs, pipes to COMMAND and the runtime take some 40.
    const NEEDED: usize = 64;
    let opened: Result<Vec<_>, _> = (0..NEEDED).map(|_| File::open("/dev/null")).collect();
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            Err(Error::FewDescriptors(NEEDED))
        }
        _ => Ok(()),
    }
}

/// Runs what may ask the daemon.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    check_descriptors()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
