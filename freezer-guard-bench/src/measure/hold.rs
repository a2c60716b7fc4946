//! The work of a helper: it starts its part and ends it, each on a command.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    ops::Range,
    path::Path,
    process::{Child, Stdio},
    sync::{Barrier, Mutex},
    thread,
    time::{Duration, Instant},
};

use freezer_guard::{
    cgroup::{Cgroup, Version},
    guard::{self, Guard, Requirements, automatic},
    kernel::{Hierarchies, Locked, Noop},
    unblock_in_child,
};
use freezer_guard_abi::{Level, LogLevel};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, dup2_stderr, getpid, setsid},
};

use super::{
    Error,
    clock::ALL_SETTLED,
    helper::{HELD, OVER, Part, READY, product, target},
};

/// The commands to a helper.
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
pub(crate) fn hold(part: Part, top: &Path) -> Result<(), Error> {
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
    let mut command = product();
    command
        .args(["daemon", "--config", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    unblock_in_child(&mut command, SigSet::all());
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
                    eprintln!("freezer-guard-bench: start a thread: {error}");
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

/// The strongest level of this host: a weaker one would cost less.
fn wanted() -> Result<Requirements, Error> {
    Ok(Requirements {
        allowed: Vec::new(),
        require: Some(Locked::strongest(Level::Enforce)?.0),
        at_most: Level::Enforce,
        owner: None,
    })
}
