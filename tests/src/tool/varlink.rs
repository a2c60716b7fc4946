//! A Varlink client of few lines, and one that behaves badly: neither shares any
//! code with the daemon.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, IoSlice, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::sys;

/// One call.
#[derive(clap::Args)]
pub(super) struct Call {
    socket: PathBuf,
    method: String,
    #[arg(default_value = "{}")]
    parameters: String,
    /// Send a descriptor of this file, open for writing
    #[arg(long)]
    writable: Vec<PathBuf>,
    /// Send a descriptor of this file, open for reading
    #[arg(long)]
    readable: Vec<PathBuf>,
    /// Send a descriptor of this file that names it and does not open it
    #[arg(long)]
    path: Vec<PathBuf>,
    /// Send a pidfd of this process, after the others
    #[arg(long)]
    pidfd: Option<u32>,
    /// Ask for more than one reply
    #[arg(long)]
    more: bool,
    /// Run this in a shell after the reply
    #[arg(long)]
    then: Option<String>,
    /// Wait for a line after that
    #[arg(long)]
    hold: bool,
}

/// Prints each reply on a line; the exit code is 1 for an error.
pub(super) fn call(call: &Call) -> Result<()> {
    let mut stream = UnixStream::connect(&call.socket).context("connect")?;
    let parameters: Value = serde_json::from_str(&call.parameters)?;
    let mut message = json!({ "method": call.method, "parameters": parameters });
    if call.more {
        message["more"] = true.into();
    }
    let mut files = Vec::new();
    for path in &call.writable {
        files.push(OpenOptions::new().write(true).open(path)?);
    }
    for path in &call.readable {
        files.push(File::open(path)?);
    }
    for path in &call.path {
        let mut options = OpenOptions::new();
        files.push(options.read(true).custom_flags(libc::O_PATH).open(path)?);
    }
    if let Some(pid) = call.pidfd {
        files.push(sys::pidfd_open(pid)?);
    }
    let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let bytes = format!("{message}\0");
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(bytes.as_bytes())],
        if fds.is_empty() { &[] } else { &rights },
        MsgFlags::empty(),
        None,
    )?;
    let mut replies = BufReader::new(stream.try_clone()?);
    loop {
        let mut reply = Vec::new();
        replies.read_until(0, &mut reply)?;
        ensure!(reply.pop() == Some(0), "the connection has ended");
        let reply: Value = serde_json::from_slice(&reply)?;
        println!("{reply}");
        std::io::stdout().flush()?;
        if let Some(error) = reply["error"].as_str() {
            bail!("{error}: {}", reply["parameters"]["message"]);
        }
        if reply["continues"] != true {
            break;
        }
    }
    if let Some(line) = &call.then {
        let status = Command::new("bash").args(["-c", line]).status()?;
        println!("then {}", status.code().unwrap_or(-1));
    }
    if call.hold {
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    // Until here it was connected.
    stream.flush()?;
    Ok(())
}

/// Opens connections and prints how many of them are answered, all at once; then how
/// many bytes of one endless message are taken.
pub(super) fn limits(socket: &Path, connections: usize) -> Result<()> {
    const CALL: &[u8] = b"{\"method\":\"org.varlink.service.GetInfo\"}\0";
    let mut open = Vec::new();
    for _ in 0..connections {
        let stream = UnixStream::connect(socket).context("connect")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        open.push(stream);
    }
    let mut answered = 0;
    for stream in &mut open {
        let mut answer = [0; 16];
        let is_answered =
            stream.write_all(CALL).is_ok() && stream.read(&mut answer).is_ok_and(|size| size > 0);
        answered += usize::from(is_answered);
    }
    let mut taken = 0;
    if let Some(stream) = open.first_mut() {
        while taken < 64 << 20 && stream.write_all(&[b'x'; 4096]).is_ok() {
            taken += 4096;
        }
    }
    println!("{answered} {taken}");
    Ok(())
}

/// Connects again and again, with everything but a whole good message. Prints how
/// many connections it took, and stays connected with the last ones for a moment.
pub(super) fn garbage(socket: &Path, connections: u32) -> Result<()> {
    let half: &[u8] = br#"{"method":"io.freezerguard.Li"#;
    let deep = [b"{\"method\":".as_slice(), &[b'['; 5000], b"\0"].concat();
    let flood = br#"{"method":"io.freezerguard.Begin","parameters":{"cgroups":["/nowhere"]}}"#;
    let flood = [flood.as_slice(), b"\0"].concat().repeat(50);
    let long = vec![b'x'; 200_000];
    let noise: Vec<u8> = (0..999_u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let kinds: [&[u8]; 8] = [
        b"",
        b"\0\0\0\0",
        half,
        &deep,
        &flood,
        &long,
        &noise,
        b"{\"method\":\"io.freezerguard.Begin\",\"parameters\":{\"cgroups\":7}}\0",
    ];
    let mut open = Vec::new();
    for number in 0..connections {
        let mut stream = UnixStream::connect(socket).context("connect")?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        // It may be closed on us: that is what we came for.
        let _ = stream.write_all(kinds[number as usize % kinds.len()]);
        if number % 3 == 0 {
            let _ = stream.read(&mut [0; 64]);
        }
        open.push(stream);
        if open.len() > 40 {
            open.clear();
        }
    }
    println!("{connections}");
    Ok(())
}
