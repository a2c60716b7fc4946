//! The socket: from systemd, or our own. Each connection is served on its own, so
//! that none can hold up another, and there are only so many.

use std::{
    fs,
    io::ErrorKind,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{PermissionsExt as _, chown},
    },
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    net::{UnixListener, UnixStream},
    task::spawn_local,
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
    access::group_id,
    accounts::{Accounts, account},
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
pub(super) fn listen(group: &str) -> Result<UnixListener> {
    let mut passed = sd_notify::listen_fds().context("take the socket from systemd")?;
    let listener = match passed.next() {
        Some(fd) => std::os::unix::net::UnixListener::from(freezer_guard::own_fd(fd)),
        None => {
            // We alone are the daemon: what is there was left by one that crashed.
            match fs::remove_file(SOCKET) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {SOCKET}"));
                }
                _ => {}
            }
            let listener = std::os::unix::net::UnixListener::bind(SOCKET)
                .with_context(|| format!("listen on {SOCKET}"))?;
            chown(SOCKET, None, group_id(group))?;
            fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o660))?;
            listener
        }
    };
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
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
        let account = account(peer.uid());
        if is_full(&connected, account) {
            // This one is closed.
            continue;
        }
        let share = connected.add(account);
        let daemon = daemon.clone();
        spawn_local(async move {
            let _share = share;
            if let Ok(stream) = Stream::new(stream) {
                // A client that breaks off harms nobody.
                let _ = Server::new(ReadyListener::new(stream), Client::new(daemon))
                    .run()
                    .await;
            }
        });
    }
}

/// A connection whose messages have a limit.
#[derive(Debug)]
struct Stream(unix::Stream);

impl Stream {
    fn new(stream: UnixStream) -> zlink::Result<Self> {
        unix::Stream::try_from(stream).map(Self)
    }
}

impl Socket for Stream {
    type ReadHalf = ReadHalf;
    type WriteHalf = <unix::Stream as Socket>::WriteHalf;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (Self::ReadHalf, Self::WriteHalf) {
        let (inner, write) = self.0.split();
        let read = ReadHalf {
            inner,
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
    /// What has come of the message under way: bytes, descriptors.
    length: usize,
    descriptors: usize,
    /// When it has to be whole: counted from its first byte.
    due: Option<Instant>,
}

impl socket::ReadHalf for ReadHalf {
    async fn read(&mut self, buffer: &mut [u8]) -> zlink::Result<ReadResult> {
        let reading = self.inner.read(buffer);
        let result = match self.due {
            // Between messages it may take its time.
            None => reading.await?,
            Some(due) => timeout_at(due, reading)
                .await
                .map_err(std::io::Error::from)??,
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
        Ok(result)
    }
}

impl AsFd for ReadHalf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl UnixSocket for ReadHalf {}
