//! The socket: from systemd, or our own. Each connection is served on its own, so
//! that none can hold up another, and there are only so many.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::PermissionsExt as _,
    },
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    net::{UnixListener, UnixStream},
    task::spawn_local,
    time::{sleep, timeout},
};
use tracing::warn;
use zlink::{
    ReadyListener, Server,
    connection::socket::{self, ReadResult, Socket, UnixSocket},
    tokio::unix,
};

use super::{
    Daemon,
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
pub(super) fn listen() -> Result<UnixListener> {
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
            // Who may do what is decided for each call.
            fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o666))?;
            listener
        }
    };
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Who is connected how often.
#[derive(Default)]
struct Connected(RefCell<BTreeMap<u32, usize>>);

/// One of the connections, for as long as it lives.
struct Place {
    connected: Rc<Connected>,
    uid: u32,
}

impl Connected {
    fn place(self: &Rc<Self>, uid: u32) -> Option<Place> {
        let mut connected = self.0.borrow_mut();
        let all: usize = connected.values().sum();
        let own = connected.get(&uid).copied().unwrap_or_default();
        let of_users = all - connected.get(&0).copied().unwrap_or_default();
        let is_refused = match uid {
            0 => all >= CONNECTIONS,
            _ => of_users >= CONNECTIONS_OF_USERS || own >= CONNECTIONS_OF_ONE,
        };
        if is_refused {
            return None;
        }
        connected.insert(uid, own + 1);
        Some(Place {
            connected: self.clone(),
            uid,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connected = self.connected.0.borrow_mut();
        if let Some(own) = connected.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                connected.remove(&self.uid);
            }
        }
    }
}

/// Accepts connections for ever.
pub(super) async fn serve(daemon: Rc<Daemon>, listener: UnixListener) {
    let connected = Rc::new(Connected::default());
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
        // Too many: this one is closed.
        let Some(place) = stream
            .peer_cred()
            .ok()
            .and_then(|peer| connected.place(peer.uid()))
        else {
            continue;
        };
        let daemon = daemon.clone();
        spawn_local(async move {
            let _place = place;
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
}

impl socket::ReadHalf for ReadHalf {
    async fn read(&mut self, buffer: &mut [u8]) -> zlink::Result<ReadResult> {
        let reading = self.inner.read(buffer);
        let result = match self.length {
            // Between messages it may take its time.
            0 => reading.await?,
            _ => timeout(MESSAGE_TIME, reading)
                .await
                .map_err(std::io::Error::from)??,
        };
        let read = &buffer[..result.bytes_read()];
        // A NUL ends a message.
        match read.iter().rposition(|byte| *byte == 0) {
            Some(end) => {
                self.length = read.len() - end - 1;
                self.descriptors = 0;
            }
            None => self.length += read.len(),
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
