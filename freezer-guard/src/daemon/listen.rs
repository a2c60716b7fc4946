//! The sockets that the service gets from systemd, and those for metrics that it makes itself.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use freezer_guard::passed_descriptors;
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use tracing::warn;

use super::error::{Error, Result};

/// `FileDescriptorName=` of freezer-guard-metrics.socket.
const METRICS: &str = "metrics";

/// The sockets that systemd has passed to us.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// For Varlink.
    pub(super) varlink: Option<OwnedFd>,
    /// For metrics.
    pub(super) metrics: Vec<OwnedFd>,
}

impl Passed {
    /// # Errors
    /// When the environment says nonsense.
    pub(super) fn take() -> Result<Self> {
        passed_descriptors()
            .map(Self::sorted)
            .map_err(Error::io("take the sockets from systemd"))
    }

    fn sorted(named: Vec<(String, OwnedFd)>) -> Self {
        let mut sorted = Self::default();
        for (name, fd) in named {
            match &*name {
                METRICS => sorted.metrics.push(fd),
                // A drop-in may give that one another name.
                _ if sorted.varlink.is_none() => sorted.varlink = Some(fd),
                name => warn!("ignoring the socket {name:?} from systemd"),
            }
        }
        sorted
    }
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Text that is no [`Address`].
#[derive(Debug, thiserror::Error)]
#[error("it is neither IP:PORT, such as 127.0.0.1:9948, nor unix: and an absolute path")]
pub(crate) struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err(NoAddress),
            None => text.parse().map(Self::Tcp).map_err(|_| NoAddress),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// A socket for metrics.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Returns the sockets from systemd, and one for each of these addresses.
    ///
    /// # Errors
    /// When one of the sockets cannot be used.
    pub(super) fn all(passed: Vec<OwnedFd>, addresses: &[Address]) -> Result<Vec<Self>> {
        let failed = || Error::io("use a socket of freezer-guard-metrics.socket");
        let passed = passed
            .into_iter()
            .map(|fd| Self::of_passed(fd).map_err(failed()));
        let own = addresses
            .iter()
            .map(|address| Self::bind(address).map_err(Error::io(format!("listen on {address}"))));
        passed.chain(own).collect()
    }

    fn of_passed(fd: OwnedFd) -> io::Result<Self> {
        if !getsockopt(&fd, AcceptConn)? {
            return Err(io::Error::other("it has to be one of ListenStream="));
        }
        let unix = UnixListener::from(fd);
        let listener = match unix.local_addr() {
            Ok(_) => Self::Unix(unix),
            Err(_) => {
                let tcp = TcpListener::from(OwnedFd::from(unix));
                tcp.local_addr()?;
                Self::Tcp(tcp)
            }
        };
        listener.set_nonblocking()?;
        Ok(listener)
    }

    pub(super) fn bind(address: &Address) -> io::Result<Self> {
        let listener = match address {
            Address::Tcp(address) => Self::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => Self::Unix(bind_unix(path)?),
        };
        listener.set_nonblocking()?;
        Ok(listener)
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }
}

/// Everybody on this host may read the metrics, as in their file.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_left = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    if is_left {
        // By a service that was killed.
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::UdpSocket};

    use super::*;

    #[test]
    fn an_address_is_an_ip_with_a_port_or_an_absolute_path() {
        for (text, shown) in [
            ("127.0.0.1:9948", "127.0.0.1:9948"),
            ("[::1]:80", "[::1]:80"),
            ("unix:/run/a", "unix:/run/a"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
        }
        for text in [
            "",
            "9948",
            "localhost:9948",
            "127.0.0.1",
            "unix:",
            "unix:a",
            "/run/a",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn descriptors_are_told_apart_by_their_names() {
        let named = |name: &str| {
            let file = File::open("/dev/null").expect("it is there");
            (name.to_owned(), OwnedFd::from(file))
        };
        let names = ["metrics", "varlink", "metrics", "another"];
        let sorted = Passed::sorted(names.map(named).into());
        assert!(sorted.varlink.is_some());
        assert_eq!(sorted.metrics.len(), 2);
        // By another name, and from a systemd that tells none.
        for name in ["freezer-guard.socket", "unknown"] {
            assert!(Passed::sorted(vec![named(name)]).varlink.is_some());
        }
        assert!(Passed::sorted(vec![named("metrics")]).varlink.is_none());
    }

    #[test]
    fn a_passed_socket_has_to_listen() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        assert!(matches!(
            Listener::of_passed(tcp.into()),
            Ok(Listener::Tcp(_))
        ));
        let dir = tempfile::tempdir().expect("a directory");
        let unix = UnixListener::bind(dir.path().join("socket")).expect("a socket");
        assert!(matches!(
            Listener::of_passed(unix.into()),
            Ok(Listener::Unix(_))
        ));
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        assert!(Listener::of_passed(udp.into()).is_err());
        let file = File::open("/dev/null").expect("it is there");
        assert!(Listener::of_passed(file.into()).is_err());
    }

    #[test]
    fn only_a_socket_that_was_left_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let address = Address::Unix(path.clone());
        let first = Listener::bind(&address).expect("it is free");
        let mode = fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o666);
        let in_use = Listener::bind(&address).expect_err("it is in use");
        assert_eq!(in_use.kind(), ErrorKind::AddrInUse);
        drop(first);
        Listener::bind(&address).expect("nobody listens any more");
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "text").expect("a file");
        assert!(Listener::bind(&address).is_err());
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "text");
    }
}
