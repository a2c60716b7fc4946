//! A client of metrics over HTTP, and clients that do not behave: none shares any code with the
//! service.

use std::{
    io::{BufRead as _, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// How long a reply may take.
const LONG: Duration = Duration::from_secs(30);

/// One request.
#[derive(clap::Args)]
pub(super) struct Request {
    /// IP:PORT, or unix: and a path
    address: String,
    #[arg(default_value = "/metrics")]
    path: String,
    #[arg(long, default_value = "GET")]
    method: String,
    /// The formats that we read
    #[arg(long)]
    accept: Option<String>,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn connect(address: &str) -> Result<Box<dyn Stream>> {
    Ok(match address.strip_prefix("unix:") {
        Some(path) => {
            let stream = UnixStream::connect(path).context("connect")?;
            stream.set_read_timeout(Some(LONG))?;
            Box::new(stream)
        }
        None => {
            let stream = TcpStream::connect(address).context("connect")?;
            stream.set_read_timeout(Some(LONG))?;
            Box::new(stream)
        }
    })
}

/// Prints the reply.
pub(super) fn request(request: &Request) -> Result<()> {
    let mut stream = connect(&request.address)?;
    let accept = request.accept.iter();
    let accept: String = accept.map(|kinds| format!("Accept: {kinds}\r\n")).collect();
    let (method, path) = (&request.method, &request.path);
    let text = format!("{method} {path} HTTP/1.1\r\nHost: guest\r\n{accept}\r\n");
    stream.write_all(text.as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    ensure!(
        !reply.is_empty(),
        "the connection has ended without a reply"
    );
    print!("{}", reply.replace("\r\n", "\n"));
    Ok(())
}

/// Opens connections, every other one with the begin of a request, prints `ready`, and keeps them until
/// there is a line to read.
pub(super) fn silent(address: &str, connections: usize) -> Result<()> {
    let mut open = Vec::new();
    for number in 0..connections {
        let mut stream = connect(address)?;
        if number % 2 == 1 {
            // It may be closed already.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: gu");
        }
        open.push(stream);
    }
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Scrapes in 8 threads as fast as it goes, prints `ready` after 100 replies, and ends when there is a
/// line to read.
pub(super) fn storm(address: &str) -> Result<()> {
    let replies = Arc::new(AtomicU64::new(0));
    for _ in 0..8 {
        let (address, replies) = (address.to_owned(), replies.clone());
        thread::spawn(move || {
            loop {
                let Ok(mut stream) = connect(&address) else {
                    continue;
                };
                if stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").is_ok() {
                    let mut reply = Vec::new();
                    if stream.read_to_end(&mut reply).is_ok() && reply.starts_with(b"HTTP/1.") {
                        replies.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    while replies.load(Ordering::Relaxed) < 100 {
        thread::sleep(Duration::from_millis(10));
    }
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}
