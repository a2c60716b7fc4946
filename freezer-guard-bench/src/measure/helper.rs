//! Helper processes, each of which holds a state for as long as it lives (see `hold`). They keep
//! this process small, and its children out of every holder.

use std::{
    env, fmt,
    io::{self, BufRead as _, BufReader, Write as _},
    ops::Range,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

use freezer_guard::VERSION;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;

/// The state that a helper holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// A program that does nothing wherever a guard has one.
    Noop,
    /// Our programs, loaded and not attached.
    Idle,
    /// The service's watch for checkpointers, and no guard.
    Watch,
    /// The service.
    Service,
    /// Nothing. It says how many guards are in force.
    Count,
    /// The guards with these numbers, each of a cgroup of its own.
    Guards(Range<usize>),
    /// So many tasks in a cgroup.
    Tasks(usize),
    /// A session of one process in a cgroup that has written so many MiB of memory.
    Memory(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Noop => formatter.write_str("empty"),
            Self::Idle => formatter.write_str("idle"),
            Self::Watch => formatter.write_str("watch"),
            Self::Service => formatter.write_str("service"),
            Self::Count => formatter.write_str("count"),
            Self::Guards(which) => write!(formatter, "guards-{}-{}", which.start, which.end),
            Self::Tasks(count) => write!(formatter, "tasks-{count}"),
            Self::Memory(mib) => write!(formatter, "memory-{mib}"),
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let guards = || {
            let (start, end) = name.strip_prefix("guards-")?.split_once('-')?;
            Some(Self::Guards(start.parse().ok()?..end.parse().ok()?))
        };
        let tasks = || Some(Self::Tasks(name.strip_prefix("tasks-")?.parse().ok()?));
        let memory = || Some(Self::Memory(name.strip_prefix("memory-")?.parse().ok()?));
        [
            Self::Noop,
            Self::Idle,
            Self::Watch,
            Self::Service,
            Self::Count,
        ]
        .into_iter()
        .find(|part| part.to_string() == name)
        .or_else(guards)
        .or_else(tasks)
        .or_else(memory)
        .ok_or_else(|| format!("{name} is nothing that can be brought about"))
    }
}

/// The cgroup that the guard with this number is about.
pub(super) fn target(top: &Path, number: usize) -> PathBuf {
    top.join(number.to_string())
}

/// The answers of a helper: it has started; it holds its state; the state has ended.
pub(super) const READY: &str = "ready";
pub(super) const HELD: &str = "held";
pub(super) const OVER: &str = "over";

/// The callback of a wait for helpers, and its interval, ms.
pub(super) type Waiting<'a> = &'a mut dyn FnMut() -> Result<(), Error>;
const WAITING: u16 = 3_000;

/// Helpers that do their parts at the same time.
pub(super) struct Helpers(Vec<Helper>);

struct Helper {
    child: Child,
    output: BufReader<ChildStdout>,
    part: Part,
}

impl Helpers {
    /// Starts them, each for its part below `top`.
    pub(super) fn start(parts: Vec<Part>, top: &Path) -> Result<Self, Error> {
        let mut helpers = Self(Vec::new());
        for part in parts {
            let mut child = Command::new("/proc/self/exe")
                .args(["--hold", &part.to_string()])
                .arg(top)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(Error::operation("start another process"))?;
            if let Some(output) = child.stdout.take() {
                let output = BufReader::new(output);
                helpers.0.push(Helper {
                    child,
                    output,
                    part,
                });
            }
        }
        helpers.hear(READY, &mut || Ok(()))?;
        Ok(helpers)
    }

    /// Starts their parts. Returns the time until all are held, and the answer of each helper.
    /// `waiting` is called now and then.
    pub(super) fn begin(&mut self, waiting: Waiting<'_>) -> Result<(Duration, Vec<String>), Error> {
        let start = Instant::now();
        self.tell()?;
        let said = self.hear(HELD, waiting)?;
        Ok((start.elapsed(), said))
    }

    /// Ends their parts. Returns the time until all have ended.
    pub(super) fn end(&mut self, waiting: Waiting<'_>) -> Result<Duration, Error> {
        let start = Instant::now();
        self.tell()?;
        self.hear(OVER, waiting)?;
        Ok(start.elapsed())
    }

    fn tell(&mut self) -> Result<(), Error> {
        for helper in &mut self.0 {
            if let Some(input) = &mut helper.child.stdin {
                let told = input.write_all(b"\n");
                told.map_err(|_| Error::Helper(helper.part.to_string()))?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, expected: &str, waiting: Waiting<'_>) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        for helper in &mut self.0 {
            // Each says one line, and nothing more before it is told to.
            let mut output = [PollFd::new(
                helper.output.get_ref().as_fd(),
                PollFlags::POLLIN,
            )];
            while poll(&mut output, PollTimeout::from(WAITING))
                .map_err(io::Error::from)
                .map_err(Error::operation("wait for another process"))?
                == 0
            {
                waiting()?;
            }
            let mut said = String::new();
            helper
                .output
                .read_line(&mut said)
                .map_err(Error::operation("hear another process"))?;
            match said.trim().strip_prefix(expected) {
                Some(more) => all.push(more.trim().to_owned()),
                None => return Err(Error::Helper(helper.part.to_string())),
            }
        }
        Ok(all)
    }
}

/// Returns the number of guards in force. A helper counts them: the list of many guards takes
/// memory, and every later fork of this process would copy its page tables.
pub(super) fn count(top: &Path) -> Result<String, Error> {
    let mut helpers = Helpers::start(vec![Part::Count], top)?;
    let (_, said) = helpers.begin(&mut || Ok(()))?;
    Ok(said.concat())
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for helper in &mut self.0 {
            drop(helper.child.stdin.take());
        }
        for helper in &mut self.0 {
            // The next condition reports its leftovers.
            let _ = helper.child.wait();
        }
    }
}

/// Checks that the measured program has the same BPF object as this one: each version unloads the
/// programs of another.
pub(super) fn check_product() -> Result<(), Error> {
    let output = product().arg("--version").output();
    let output = output.map_err(Error::operation("run freezer-guard"))?;
    let version = String::from_utf8_lossy(&output.stdout);
    match version.trim().strip_prefix("freezer-guard ") {
        Some(VERSION) => Ok(()),
        _ => Err(Error::OtherVersion(version.trim().to_owned())),
    }
}

/// The program that is measured: the one beside this, or else the one in PATH.
pub(super) fn product() -> Command {
    const NAME: &str = "freezer-guard";
    let beside = env::current_exe().map(|exe| exe.with_file_name(NAME));
    Command::new(match beside {
        Ok(path) if path.exists() => path,
        _ => NAME.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::Part;

    #[test]
    fn parts_are_named_as_they_are_read() {
        for part in [
            Part::Noop,
            Part::Idle,
            Part::Watch,
            Part::Service,
            Part::Count,
            Part::Guards(3..157),
            Part::Tasks(100),
            Part::Memory(500),
        ] {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        assert!("guards-3".parse::<Part>().is_err());
    }
}
