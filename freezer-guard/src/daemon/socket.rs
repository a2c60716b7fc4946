//! The socket: from systemd, or our own. Each connection is served on its own, so
//! that none can hold up another, and there are only so many.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{PermissionsExt as _, chown},
    },
    rc::Rc,
    time::Duration,
};

use freezer_guard::guard::PidFd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::{UnixListener, UnixStream},
    task::{JoinHandle, spawn_blocking, spawn_local},
    time::{Instant, sleep, timeout_at},
};
use tracing::warn;
use zlink::{
    ReadyListener, Server,
    connection::socket::{self, ReadResult, Socket, UnixSocket},
    tokio::unix,
};

use super::{
    Daemon,
    access::{group_id, is_harmless},
    accounts::{Accounts, Share, account},
    error::{Error, Result},
    varlink::{Client, SOCKET},
};

/// How many connections there may be in all, of all who are not root, and of one
/// of these.
const CONNECTIONS: usize = 512;
const CONNECTIONS_OF_USERS: usize = 384;
const CONNECTIONS_OF_ONE: usize = 32;
/// How long a message may be, bytes, how many descriptors may come with it, and
/// how long it may take.
const MESSAGE: usize = 64 * 1024;
const DESCRIPTORS: usize = 16;
const MESSAGE_TIME: Duration = Duration::from_secs(10);

/// The socket that systemd has passed to us, or else one of our own.
/// That is for root and the members of this group, if it exists.
pub(super) fn listen(passed: Option<OwnedFd>, group: &str) -> Result<UnixListener> {
    allow_descriptors();
    let failed = || Error::io(format!("listen on {SOCKET}"));
    let listener = match passed {
        Some(fd) => std::os::unix::net::UnixListener::from(fd),
        None => {
            // We alone are the daemon: what is there was left by one that crashed.
            match fs::remove_file(SOCKET) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {SOCKET}"))(error));
                }
                _ => {}
            }
            bind(group).map_err(failed())?
        }
    };
    listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener))
        .map_err(failed())
}

/// Raises the limit of descriptors as far as permitted: clients send some. The unit has set it already, and
/// its sandbox does not even let us ask.
fn allow_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn bind(group: &str) -> io::Result<std::os::unix::net::UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind(SOCKET)?;
    chown(SOCKET, None, group_id(group))?;
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Returns whether one more connection of this account is too much.
fn is_full(connected: &Accounts, account: u32) -> bool {
    let all = connected.sum();
    match account {
        0 => all >= CONNECTIONS,
        _ => {
            all - connected.of(0) >= CONNECTIONS_OF_USERS
                || connected.of(account) >= CONNECTIONS_OF_ONE
        }
    }
}

/// Accepts connections for ever.
pub(super) async fn serve(daemon: Rc<Daemon>, listener: UnixListener) {
    let connected = Rc::new(Accounts::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                // Descriptors may have run out: some will be free again.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else {
            continue;
        };
        // The kernel knows no pidfd of it before Linux 6.5: this one is of now, and not of the
        // time of a call, when its pid may be another's.
        let process = peer
            .pid()
            .and_then(|pid| PidFd::open(pid.cast_unsigned()).ok());
        let account = account(peer.uid());
        if is_full(&connected, account) {
            // This one is closed.
            continue;
        }
        let share = connected.add(account);
        let daemon = daemon.clone();
        spawn_local(async move {
            if let Ok(stream) = Stream::new(stream, share) {
                // A client that breaks off harms nobody.
                let _ = Server::new(ReadyListener::new(stream), Client::new(daemon, process))
                    .run()
                    .await;
            }
        });
    }
}

/// A connection whose messages have a limit.
#[derive(Debug)]
struct Stream {
    inner: unix::Stream,
    share: Share,
}

impl Stream {
    fn new(stream: UnixStream, share: Share) -> zlink::Result<Self> {
        let inner = unix::Stream::try_from(stream)?;
        Ok(Self { inner, share })
    }
}

impl Socket for Stream {
    type ReadHalf = ReadHalf;
    type WriteHalf = <unix::Stream as Socket>::WriteHalf;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (Self::ReadHalf, Self::WriteHalf) {
        let (inner, write) = self.inner.split();
        let read = ReadHalf {
            inner,
            share: Rc::new(self.share),
            closing: None,
            length: 0,
            descriptors: 0,
            due: None,
        };
        (read, write)
    }
}

#[derive(Debug)]
struct ReadHalf {
    inner: <unix::Stream as Socket>::ReadHalf,
    /// The connection counts until the last descriptor is closed that came over it.
    share: Rc<Share>,
    closing: Option<JoinHandle<()>>,
    /// What has come of the message under way: bytes, descriptors.
    length: usize,
    descriptors: usize,
    /// When it has to be whole: counted from its first byte.
    due: Option<Instant>,
}

impl ReadHalf {
    /// Returns the descriptors, with one of `/dev/null` in the place of each that can block
    /// us. A thread closes those: a file system of the client's may never answer.
    fn harmless(&mut self, mut fds: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
        let mut foreign = Vec::new();
        for fd in &mut fds {
            if !is_harmless(fd) {
                let null = fs::File::open("/dev/null")?;
                foreign.push(std::mem::replace(fd, null.into()));
            }
        }
        if !foreign.is_empty() {
            let share = self.share.clone();
            self.closing = Some(spawn_local(async move {
                let _share = share;
                let _ = spawn_blocking(move || drop(foreign)).await;
            }));
        }
        Ok(fds)
    }
}

impl socket::ReadHalf for ReadHalf {
    async fn read(&mut self, buffer: &mut [u8]) -> zlink::Result<ReadResult> {
        // So each connection has one thread at most.
        if let Some(closing) = &mut self.closing {
            let _ = closing.await;
            self.closing = None;
        }
        let reading = self.inner.read(buffer);
        let mut result = match self.due {
            // Between messages it may take its time.
            None => reading.await?,
            Some(due) => timeout_at(due, reading).await.map_err(io::Error::from)??,
        };
        let read = &buffer[..result.bytes_read()];
        // A NUL ends a message.
        match read.iter().rposition(|byte| *byte == 0) {
            Some(end) => {
                self.length = read.len() - end - 1;
                self.descriptors = 0;
                self.due = None;
            }
            None => self.length += read.len(),
        }
        if self.length > 0 {
            self.due
                .get_or_insert_with(|| Instant::now() + MESSAGE_TIME);
        }
        self.descriptors += result.fds().len();
        if self.length > MESSAGE || self.descriptors > DESCRIPTORS {
            return Err(zlink::Error::BufferOverflow);
        }
        let fds = result.take_fds();
        Ok(result.set_fds(self.harmless(fds)?))
    }
}

impl AsFd for ReadHalf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl UnixSocket for ReadHalf {}
