//! A client of `criu service`: `criu(8)`, and `images/rpc.proto` of CRIU.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket, socketpair,
};
use prost::Message;

/// One dump.
#[derive(clap::Args)]
pub(super) struct Dump {
    /// The socket of `criu service`; without it, the tool executes `criu swrk`
    #[arg(long)]
    service: Option<PathBuf>,
    /// Dump memory only, and then dump; both in one connection
    #[arg(long)]
    after_pre_dump: bool,
    /// Print `dumped` and wait for a line while CRIU still holds the tasks
    #[arg(long)]
    hold: bool,
    /// A cgroup to freeze
    #[arg(long)]
    freeze_cgroup: Option<PathBuf>,
    /// Dump as often as this; freeze the cgroup before each dump, and thaw it on CRIU's answer
    #[arg(long, requires = "freeze_cgroup", value_name = "TIMES")]
    paused: Option<u32>,
    pid: i32,
    images: PathBuf,
}

/// `criu_opts`, as far as it is used.
#[derive(Clone, Message)]
struct Options {
    #[prost(int32, required, tag = "1")]
    images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    leave_running: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    notify_scripts: Option<bool>,
    #[prost(bool, optional, tag = "15")]
    track_mem: Option<bool>,
    #[prost(string, optional, tag = "44")]
    freeze_cgroup: Option<String>,
    #[prost(uint32, optional, tag = "45")]
    timeout: Option<u32>,
}

/// `criu_req_type`
const DUMP: i32 = 1;
const PRE_DUMP: i32 = 4;
const NOTIFY: i32 = 6;

#[derive(Clone, Message)]
struct Request {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
}

#[derive(Clone, Message)]
struct Response {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "5")]
    notify: Option<Notification>,
    #[prost(string, optional, tag = "9")]
    error: Option<String>,
}

/// `criu_notify`
#[derive(Clone, Message)]
struct Notification {
    #[prost(string, optional, tag = "1")]
    script: Option<String>,
}

/// Dumps a tree, which goes on. After a pre-dump, prints `pre-dumped` and waits for a line.
pub(super) fn dump(dump: &Dump) -> Result<()> {
    if let (Some(times), Some(cgroup)) = (dump.paused, &dump.freeze_cgroup) {
        return (0..times).try_for_each(|number| {
            dump_paused(dump, cgroup).with_context(|| format!("dump {number} of {times}"))
        });
    }
    let (socket, _worker) = match &dump.service {
        Some(path) => (connected(path)?, None),
        None => {
            let (socket, worker) = swrk()?;
            (socket, Some(worker))
        }
    };
    if dump.after_pre_dump {
        let images = dump.images.join("pre");
        fs::create_dir(&images)?;
        ask(&socket, PRE_DUMP, dump, &images)?;
        println!("pre-dumped");
        std::io::stdin().read_line(&mut String::new())?;
    }
    ask(&socket, DUMP, dump, &dump.images)
}

/// As engines do that pause a container around its dump: they thaw it once and do not try again.
fn dump_paused(dump: &Dump, cgroup: &Path) -> Result<()> {
    let freezer = Freezer::of(cgroup);
    freezer.freeze()?;
    let (socket, mut worker) = swrk()?;
    let answer = ask(&socket, DUMP, dump, &dump.images);
    freezer.thaw().context("thaw on CRIU's answer")?;
    answer?;
    drop(socket);
    worker.wait()?;
    Ok(())
}

/// The file of a cgroup that freezes it, and what to write there.
struct Freezer {
    file: PathBuf,
    state: PathBuf,
    is_frozen: &'static str,
    values: [&'static str; 2],
}

impl Freezer {
    fn of(cgroup: &Path) -> Self {
        let v1 = cgroup.join("freezer.state");
        match v1.exists() {
            true => Self {
                state: v1.clone(),
                file: v1,
                is_frozen: "FROZEN\n",
                values: ["FROZEN", "THAWED"],
            },
            false => Self {
                state: cgroup.join("cgroup.events"),
                file: cgroup.join("cgroup.freeze"),
                is_frozen: "frozen 1\n",
                values: ["1", "0"],
            },
        }
    }

    fn freeze(&self) -> Result<()> {
        fs::write(&self.file, self.values[0]).context("freeze")?;
        while !fs::read_to_string(&self.state)?.ends_with(self.is_frozen) {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn thaw(&self) -> std::io::Result<()> {
        fs::write(&self.file, self.values[1])
    }
}

fn connected(path: &Path) -> Result<OwnedFd> {
    let kind = SockType::SeqPacket;
    let socket = socket(AddressFamily::Unix, kind, SockFlag::empty(), None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?).context("connect to criu service")?;
    Ok(socket)
}

/// Executes CRIU as engines do.
fn swrk() -> Result<(OwnedFd, Child)> {
    let (own, others) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::empty(),
    )?;
    let number = others.as_raw_fd().to_string();
    let mut command = Command::new("criu");
    let child = command.args(["swrk", &number]).stdin(Stdio::null()).spawn();
    Ok((own, child.context("run criu")?))
}

fn ask(socket: &OwnedFd, kind: i32, dump: &Dump, images: &Path) -> Result<()> {
    let dir = File::open(images)?;
    let text = |path: &PathBuf| path.to_str().map(str::to_owned);
    let request = Request {
        kind,
        options: Some(Options {
            images_dir_fd: dir.as_raw_fd(),
            pid: Some(dump.pid),
            leave_running: Some(true),
            log_level: Some(4),
            log_file: Some("dump.log".to_owned()),
            notify_scripts: Some(dump.hold),
            track_mem: Some(dump.after_pre_dump),
            freeze_cgroup: dump.freeze_cgroup.as_ref().and_then(text),
            timeout: Some(100),
        }),
        notify_success: None,
    };
    let mut response = exchange(socket, &request)?;
    while let Some(notification) = response.notify.take() {
        if notification.script.as_deref() == Some("post-dump") {
            println!("dumped");
            std::io::stdin().read_line(&mut String::new())?;
        }
        let go_on = Request {
            kind: NOTIFY,
            options: None,
            notify_success: Some(true),
        };
        response = exchange(socket, &go_on)?;
    }
    ensure!(
        response.success,
        "CRIU failed: {}",
        response.error.unwrap_or_default()
    );
    Ok(())
}

fn exchange(socket: &OwnedFd, request: &Request) -> Result<Response> {
    let request = request.encode_to_vec();
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut bytes = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    Ok(Response::decode(&bytes[..length])?)
}
