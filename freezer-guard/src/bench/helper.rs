//! Processes that bring something about for as long as they live: what that needs shall
//! not make this process bigger, nor its children members.

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    ops::Range,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    str::FromStr,
    sync::{Barrier, Mutex},
    thread,
    time::{Duration, Instant},
};

use freezer_guard_abi::{Level, LogLevel};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, dup2_stderr, getpid, setsid},
};

use super::{Error, clock::ALL_SETTLED};
use crate::{
    cgroup::{Cgroup, Version},
    guard::{self, Guard, Requirements, automatic},
    kernel::{Hierarchies, Locked, Noop},
    sys,
};

/// What a process brings about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
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

/// What a helper says: it has started, what it is for is there, and is there no more.
const READY: &str = "ready";
const HELD: &str = "held";
const OVER: &str = "over";

/// What is done while one waits for them, and how often, ms.
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
                .args(["bench", "--hold", &part.to_string()])
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

    /// Lets them do their parts. How long that has taken, and what each has said of it.
    /// `waiting` is called now and then.
    pub(super) fn begin(&mut self, waiting: Waiting<'_>) -> Result<(Duration, Vec<String>), Error> {
        let start = Instant::now();
        self.tell()?;
        let said = self.hear(HELD, waiting)?;
        Ok((start.elapsed(), said))
    }

    /// Lets them end it. How long that has taken.
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

/// How many guards are in force: with many of them that takes memory, and a fork of a
/// process copies the page tables of what it has ever taken.
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
            // What it has left is told by the next condition.
            let _ = helper.child.wait();
        }
    }
}

/// What a helper hears.
struct Orders(io::Stdin);

impl Orders {
    fn say(&self, said: impl fmt::Display) -> Result<(), Error> {
        let mut output = io::stdout();
        writeln!(output, "{said}")
            .and_then(|()| output.flush())
            .map_err(Error::operation("speak"))
    }

    /// Says it, and waits for an order, or for the end of the other process.
    fn wait(&self, said: impl fmt::Display) -> Result<(), Error> {
        self.say(said)?;
        self.0
            .read_line(&mut String::new())
            .map(drop)
            .map_err(Error::operation("wait"))
    }
}

/// Brings a part about when told to, says so, and ends it when told to, or when nothing
/// more can be read from standard input.
///
/// # Errors
/// When it cannot be brought about.
pub fn hold(part: Part, top: &Path) -> Result<(), Error> {
    let orders = Orders(io::stdin());
    orders.wait(READY)?;
    match part {
        Part::Noop => {
            let programs = Noop::attach(&Locked::wait()?, hierarchies(top)?)?;
            orders.wait(HELD)?;
            drop(programs);
        }
        Part::Idle => {
            // It leaves its programs loaded, and the kernel detaches them in the background.
            begin(&target(top, 0))?.end()?;
            thread::sleep(ALL_SETTLED);
            orders.wait(HELD)?;
        }
        Part::Watch => {
            let wanted = automatic::Requirements::default();
            automatic::watch(Some(&wanted), Level::Enforce, LogLevel::Off)?;
            let waited = orders.wait(HELD);
            automatic::unwatch()?;
            waited?;
        }
        Part::Service => serve(&orders)?,
        Part::Count => orders.wait(format_args!("{HELD} {}", guard::count()?))?,
        Part::Guards(which) => hold_guards(&orders, top, which)?,
        Part::Tasks(count) => {
            enter(top)?;
            for _ in 1..count {
                small_thread()
                    .spawn(|| {
                        loop {
                            thread::park();
                        }
                    })
                    .map_err(Error::operation("start a thread"))?;
            }
            orders.wait(HELD)?;
        }
        Part::Memory(mib) => hold_memory(&orders, top, mib)?,
    }
    orders.say(OVER)
}

/// Its pid is said. It has nothing but these pipes that is another process's too: CRIU
/// would not dump that.
fn hold_memory(orders: &Orders, top: &Path, mib: usize) -> Result<(), Error> {
    enter(top)?;
    let memory = vec![1_u8; mib << 20];
    let detached = || -> io::Result<()> {
        setsid()?;
        Ok(dup2_stderr(File::options().write(true).open("/dev/null")?)?)
    };
    detached().map_err(Error::operation("begin a session"))?;
    orders.wait(format_args!("{HELD} {}", getpid()))?;
    drop(std::hint::black_box(memory));
    Ok(())
}

fn enter(cgroup: &Path) -> Result<(), Error> {
    fs::write(cgroup.join("cgroup.procs"), "0").map_err(Error::operation(format!(
        "enter the cgroup {}",
        cgroup.display()
    )))
}

/// Ten thousand have to fit.
fn small_thread() -> thread::Builder {
    thread::Builder::new().stack_size(128 << 10)
}

fn hierarchies(top: &Path) -> Result<Hierarchies, Error> {
    let version = Cgroup::open(&target(top, 0))?.version();
    Ok(Hierarchies {
        v1: version == Version::V1,
        v2: version == Version::V2,
    })
}

/// The service as it is, but for systemd. Says its pid.
fn serve(orders: &Orders) -> Result<(), Error> {
    const READY_WITHIN: Duration = Duration::from_secs(60);
    let failed = || Error::operation("run the service");
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["daemon", "--config", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::unblock_in_child(&mut command, SigSet::all());
    let mut service = Service(command.spawn().map_err(failed())?);
    let start = Instant::now();
    while !Locked::wait()?.watches() {
        if service.0.try_wait().map_err(failed())?.is_some() || start.elapsed() > READY_WITHIN {
            return Err(Error::Helper(Part::Service.to_string()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    orders.wait(format_args!("{HELD} {}", service.0.id()))
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Each in a thread of its own, which is its holder; one after the other, as a client
/// would do it.
fn hold_guards(orders: &Orders, top: &Path, which: Range<usize>) -> Result<(), Error> {
    let count = which.len();
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        /// Descriptors of a guard: two for each of its maps, and others.
        const EACH: u64 = 24;
        let wanted = most.max(256 + EACH * count as u64);
        // If that is not allowed, a guard says so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
    }
    let turn = Mutex::new(0);
    let begun = Barrier::new(count + 1);
    let over = Barrier::new(count + 1);
    thread::scope(|scope| {
        let mut holders = Vec::new();
        for number in which {
            let (turn, begun, over) = (&turn, &begun, &over);
            let holder = small_thread().spawn_scoped(scope, move || {
                let guard = {
                    let mut held = turn.lock().unwrap_or_else(|held| held.into_inner());
                    let guard = begin(&target(top, number));
                    *held += usize::from(guard.is_ok());
                    guard
                };
                begun.wait();
                over.wait();
                let _turn = turn.lock();
                guard.and_then(|guard| Ok(guard.end()?)).map(drop)
            });
            match holder {
                Ok(holder) => holders.push(holder),
                Err(error) => {
                    // The others wait for it. With this process their guards end.
                    eprintln!("freezer-guard: start a thread: {error}");
                    std::process::exit(1);
                }
            }
        }
        begun.wait();
        let held = turn.lock().map_or(0, |held| *held);
        let waited = match held == count {
            true => orders.wait(HELD),
            false => Ok(()),
        };
        over.wait();
        let mut results = holders.into_iter().map(|holder| {
            holder
                .join()
                .unwrap_or_else(|_| Err(Error::Helper("a thread".to_owned())))
        });
        waited.and(results.find(Result::is_err).unwrap_or(Ok(())))
    })
}

fn begin(path: &Path) -> Result<Guard, Error> {
    let cgroup = Cgroup::open(path)?;
    Ok(Guard::begin(vec![vec![cgroup]], &wanted()?)?)
}

/// What this host can do: less would cost less.
fn wanted() -> Result<Requirements, Error> {
    Ok(Requirements {
        allowed: Vec::new(),
        require: Some(Locked::strongest(Level::Enforce)?.0),
        at_most: Level::Enforce,
        owner: None,
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
