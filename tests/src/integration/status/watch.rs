//! `status --watch`: on a terminal, which is left as it was, and into a pipe.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _, pipe},
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    fcntl::{FcntlArg, fcntl},
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};
use serde_json::Value;

use super::super::{
    cgroups::{Cgroup, Hierarchy},
    process::{Held, LONG, Process},
};

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    parts: Receiver<String>,
    /// All that it has written.
    seen: String,
    before: Termios,
}

impl Terminal {
    fn spawn(command: &mut Command) -> Result<Self> {
        let size = Winsize {
            ws_row: 40,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None)?;
        let before = tcgetattr(&pty.slave)?;
        let end = || Ok::<_, std::io::Error>(Stdio::from(pty.slave.try_clone()?));
        let child = command.stdin(end()?).stdout(end()?).stderr(end()?).spawn();
        let master = File::from(pty.master);
        let (sender, parts) = channel();
        let mut output = master.try_clone()?;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(size @ 1..) = output.read(&mut buffer) {
                // Nobody listens after the test.
                let _ = sender.send(String::from_utf8_lossy(&buffer[..size]).into_owned());
            }
        });
        Ok(Self {
            child: child.context("run freezer-guard")?,
            master,
            slave: pty.slave,
            parts,
            seen: String::new(),
            before,
        })
    }

    /// Waits until it has written this since the last such call.
    fn expect(&mut self, words: &str) -> Result<()> {
        let start = Instant::now();
        let mut new = String::new();
        while !new.contains(words) {
            let left = LONG.saturating_sub(start.elapsed());
            let part = self.parts.recv_timeout(left);
            let part = part.with_context(|| format!("no {words:?} in:\n{new:?}"))?;
            self.seen += &part;
            new += &part;
        }
        Ok(())
    }

    /// Ends it by a key, and checks that the terminal is as it was.
    fn quit(mut self, key: &[u8]) -> Result<()> {
        self.master.write_all(key)?;
        wait(&mut self.child)?;
        self.expect_left()
    }

    fn expect_left(mut self) -> Result<()> {
        let status = self.child.wait()?;
        while let Ok(part) = self.parts.recv_timeout(Duration::from_millis(200)) {
            self.seen += &part;
        }
        ensure!(status.success(), "it ended with {status}: {:?}", self.seen);
        let count = |words: &str| self.seen.matches(words).count();
        ensure!(
            count("\x1b[?1049h") == 1 && self.seen.ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"),
            "the screen is not left as it was: {:?}",
            self.seen
        );
        ensure!(
            tcgetattr(&self.slave)? == self.before,
            "the terminal is set differently"
        );
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Only where a test has failed is there something to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guard from its begin to its end, live.
pub(super) fn on_a_terminal(hierarchy: Hierarchy) -> Result<()> {
    let mut command = Command::new("freezer-guard");
    command.args(["status", "--watch=0.2"]);
    let mut terminal = Terminal::spawn(&mut command)?;
    terminal.expect("guards in force: ")?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    terminal.expect(&target.text())?;
    terminal.expect("CHECKPOINTING")?;
    target.expect_refused("cgroup.procs", "1")?;
    terminal.expect(" refused ")?;
    held.release()?.expect(0)?;
    terminal.expect("ENDED")?;
    terminal.quit(b"q")?;

    // A signal leaves the terminal as it was, too.
    let mut terminal = Terminal::spawn(&mut command)?;
    terminal.expect("q: quit")?;
    send(&terminal.child, Signal::SIGINT)?;
    terminal.expect_left()?;

    // It is drawn again for another size, and not only at the next refresh.
    let mut command = Command::new("freezer-guard");
    command.args(["status", "--watch=3600"]);
    let mut terminal = Terminal::spawn(&mut command)?;
    terminal.expect("q: quit")?;
    send(&terminal.child, Signal::SIGWINCH)?;
    terminal.expect("q: quit")?;
    terminal.quit(b"q")
}

/// A pipe gets a table when something has changed, and nothing that drives a terminal.
pub(super) fn into_a_pipe(hierarchy: Hierarchy) -> Result<()> {
    let watch = |more: &[&str]| {
        let mut command = Command::new("freezer-guard");
        Process::spawn(command.args(["status", "--watch=0.2"]).args(more))
    };
    let (mut text, mut json) = (watch(&[])?, watch(&["--json"])?);
    let first = text.line()?;
    ensure!(first.ends_with('Z'), "no time: {first:?}");
    let seen: Value = serde_json::from_str(&json.line()?)?;
    ensure!(
        seen["guards"].is_array() && seen["ended"].is_array(),
        "{seen}"
    );
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    while !text.line()?.contains(&target.text()) {}
    // Nothing changes for some turns.
    thread::sleep(Duration::from_secs(2));
    held.release()?.expect(0)?;
    while !text.line()?.contains("ENDED") {}
    for process in [&text, &json] {
        process.signal(Signal::SIGINT)?;
    }
    let by_signal = 128 + Signal::SIGINT as i32;
    let rest = text.wait(LONG)?.expect(by_signal)?;
    ensure!(!rest.stdout.contains('\x1b'), "{:?}", rest.stdout);
    let tables = rest.stdout.lines().filter(|line| line.ends_with('Z'));
    ensure!(tables.count() < 4, "it repeats itself:\n{}", rest.stdout);
    let rest = json.wait(LONG)?.expect(by_signal)?;
    ensure!(rest.stdout.lines().count() > 5, "{}", rest.stdout);
    Ok(())
}

/// A reader that has gone ends it at once, and one that reads no more does not make it deaf.
pub(super) fn into_a_pipe_of_nobody(_: Hierarchy) -> Result<()> {
    let watch = |seconds: &str| -> Result<_> {
        let (reader, writer) = pipe()?;
        // One page, which is soon full.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096))?;
        let mut command = Command::new("freezer-guard");
        command.args(["status", "--json", &format!("--watch={seconds}")]);
        Ok((command.stdout(writer).spawn()?, reader))
    };
    let (mut closed, mut reader) = watch("3600")?;
    reader.read_exact(&mut [0])?;
    drop(reader);
    let status = wait(&mut closed)?;
    ensure!(status.success(), "{status}");

    let (mut full, _reader) = watch("0.1")?;
    let start = Instant::now();
    while !fs::read_to_string(format!("/proc/{}/wchan", full.id()))?.contains("pipe_w") {
        ensure!(start.elapsed() < LONG, "the pipe does not fill");
        thread::sleep(Duration::from_millis(100));
    }
    send(&full, Signal::SIGTERM)?;
    let status = wait(&mut full)?;
    ensure!(status.signal() == Some(Signal::SIGTERM as i32), "{status}");
    Ok(())
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    kill(pid, signal).with_context(|| format!("send {signal}"))
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > LONG {
            child.kill()?;
            child.wait()?;
            bail!("it does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
