//! Programs under test: started with pipes, waited for with a limit.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub(super) use super::LONG;
use super::{PATIENCE, cgroups::Cgroup};

/// What a program left.
#[derive(Debug)]
pub(super) struct Finished {
    /// Its exit code, or 128 and the signal.
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Finished {
    #[track_caller]
    pub(super) fn expect(self, code: i32) -> Result<Self> {
        let Self {
            code: got,
            stdout,
            stderr,
        } = &self;
        ensure!(
            *got == code,
            "ended with {got}, not {code}\n{stdout}\nstderr:\n{stderr}"
        );
        Ok(self)
    }

    #[track_caller]
    pub(super) fn says(self, words: &str) -> Result<Self> {
        ensure!(
            self.stderr.contains(words),
            "does not say {words:?}, but:\n{}",
            self.stderr
        );
        Ok(self)
    }
}

/// A running program.
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Process {
    pub(super) fn spawn(command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("run {}", command.get_program().display()))?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().context("a pipe")?;
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens after the test.
                let _ = sender.send(line);
            }
        });
        let (sender, errors) = channel();
        let mut stderr = child.stderr.take().context("a pipe")?;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(size @ 1..) = stderr.read(&mut buffer) {
                let _ = sender.send(String::from_utf8_lossy(&buffer[..size]).into_owned());
            }
        });
        let stdin = child.stdin.take();
        Ok(Self {
            child,
            stdin,
            lines,
            errors,
        })
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("send {signal}"))
    }

    /// The next line that it writes.
    pub(super) fn line(&mut self) -> Result<String> {
        match self.lines.recv_timeout(LONG) {
            Ok(line) => Ok(line),
            Err(_) => bail!(
                "wrote no line; its stderr:\n{}",
                self.stderr(Duration::ZERO)
            ),
        }
    }

    pub(super) fn expect_line(&mut self, expected: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(line == expected, "wrote {line:?}, not {expected:?}");
        Ok(())
    }

    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{line}").context("write to its input")
    }

    pub(super) fn close_input(&mut self) {
        self.stdin = None;
    }

    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn stderr(&self, patience: Duration) -> String {
        let start = Instant::now();
        let mut text = String::new();
        // A grandchild may keep the pipe open: then its end never comes.
        while let Ok(part) = self
            .errors
            .recv_timeout(patience.saturating_sub(start.elapsed()))
        {
            text += &part;
        }
        text
    }

    /// Waits until it ends; kills it, and fails, when that takes too long.
    pub(super) fn wait(mut self, limit: Duration) -> Result<Finished> {
        use std::os::unix::process::ExitStatusExt as _;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if start.elapsed() > limit {
                let places = places_in_the_kernel();
                // It may end just now.
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!(
                    "still ran after {limit:?}; stderr:\n{}\n{places}",
                    self.stderr(PATIENCE / 10)
                );
            }
            thread::sleep(Duration::from_millis(10));
        };
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let stderr = self.stderr(Duration::from_secs(1));
        let mut stdout = String::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            stdout += &(line + "\n");
        }
        Ok(Finished {
            code,
            stdout,
            stderr,
        })
    }
}

/// Where each CRIU, each of our programs and each tracer is: a hang has its cause there.
fn places_in_the_kernel() -> String {
    let mut text = String::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        let name = read("comm");
        if !["criu", "strace", "guest-tool", "freezer-guard"].contains(&name.trim_end()) {
            continue;
        }
        let status = read("status");
        let status = status
            .lines()
            .filter(|line| line.starts_with("State:") || line.starts_with("TracerPid:"));
        text += &format!(
            "{} {name}{}\nsystem call {}{}\n",
            process.path().display(),
            status.collect::<Vec<_>>().join(" "),
            read("syscall"),
            read("stack")
        );
    }
    text
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only where a test has failed is there something to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command, run by a user who is not root.
pub(super) fn as_user(uid: u32, groups: &str, client: &Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string()]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.args(["--groups", groups]),
    };
    command.arg(client.get_program()).args(client.get_args());
    command
}

/// Runs a command to its end.
pub(super) fn run(command: &mut Command) -> Result<Finished> {
    let mut process = Process::spawn(command)?;
    process.close_input();
    process.wait(LONG)
}

/// Runs `freezer-guard` with these arguments to its end.
pub(super) fn guard<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<Finished> {
    run(Command::new("freezer-guard").args(arguments))
}

/// Runs `guest-tool` with these arguments to its end.
pub(super) fn tool<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<Finished> {
    run(Command::new("guest-tool").args(arguments))
}

/// What `freezer-guard status --json` prints, with these arguments.
pub(super) fn status(arguments: &[&str]) -> Result<Value> {
    let finished = guard([&["status", "--json"], arguments].concat())?.expect(0)?;
    let text = &finished.stdout;
    let value = serde_json::from_str(text).with_context(|| format!("not JSON: {text:?}"))?;
    expect_version(&value)?;
    Ok(value)
}

/// Each object has the version of its format.
pub(super) fn expect_version(object: &Value) -> Result<()> {
    ensure!(object["version"] == 1, "no version: {object}");
    Ok(())
}

/// The guard that has ended last, as far as the service remembers.
pub(super) fn last_guard() -> Result<Value> {
    let last = status(&["--last"])?;
    let last = last["guards"].as_array().and_then(|all| all.last());
    last.cloned().context("no guard is remembered")
}

/// The guards that `status` lists, but for the one that no trial is about.
pub(super) fn guards() -> Result<Vec<Value>> {
    let status = status(&[])?;
    let guards = status["guards"].as_array().context("`guards` is a list")?;
    let another = super::path_of_another();
    Ok(guards
        .iter()
        .filter(|guard| {
            another
                .as_ref()
                .is_none_or(|path| guard["cgroups"][0] != **path)
        })
        .cloned()
        .collect())
}

/// `freezer-guard run` around a shell that does what we tell it.
pub(super) struct Held(Process);

impl Held {
    const SHELL: &str =
        r#"echo held; while read -r line; do eval "$line"; echo "rc $?"; done; exit 0"#;

    /// Starts it; the guard may not be there yet.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(Process::spawn(command.args([
            "--",
            "bash",
            "-c",
            Self::SHELL,
        ]))?))
    }

    /// Freezes the cgroups and guards them.
    pub(super) fn new(cgroups: &[&Cgroup]) -> Result<Self> {
        let mut held = Self::start(&mut Self::command(cgroups))?;
        held.wait_held()?;
        Ok(held)
    }

    /// `freezer-guard run --freeze` of these cgroups.
    pub(super) fn command(cgroups: &[&Cgroup]) -> Command {
        let mut command = Command::new("freezer-guard");
        command.args(["run", "--freeze"]);
        for cgroup in cgroups {
            command.arg("--cgroup").arg(&cgroup.path);
        }
        command
    }

    pub(super) fn wait_held(&mut self) -> Result<()> {
        self.0.expect_line("held")
    }

    /// The exit code of a shell command that the holder runs.
    pub(super) fn sh(&mut self, line: &str) -> Result<i32> {
        self.0.tell(line)?;
        loop {
            if let Some(code) = self.0.line()?.strip_prefix("rc ") {
                return Ok(code.parse()?);
            }
        }
    }

    /// Lets the holder thaw a cgroup.
    pub(super) fn thaw(&mut self, cgroup: &Cgroup) -> Result<()> {
        let (value, freezer) = (cgroup.hierarchy.thawed(), cgroup.freezer());
        let code = self.sh(&format!("echo {value} > {}", freezer.display()))?;
        ensure!(code == 0, "the holder may not thaw {}", cgroup.text());
        Ok(())
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.0
    }

    /// Lets COMMAND end, and returns what `run` left.
    pub(super) fn release(mut self) -> Result<Finished> {
        self.0.close_input();
        self.0.wait(LONG)
    }
}
