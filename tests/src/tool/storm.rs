//! Many processes that do something as often as they can.

use std::{
    fs::{self, File},
    io::{IoSliceMut, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::{
        signal,
        uio::{RemoteIoVec, process_vm_readv},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid},
};

use crate::sys;

/// 20 threads, each of which starts 20 processes that end at once, two of
/// them by way of a grandchild.
pub(super) fn storm() -> Result<()> {
    let threads: Vec<_> = (0..20)
        .map(|_| {
            thread::spawn(|| -> Result<()> {
                for round in 0..20 {
                    let mut command = Command::new("bash");
                    command.args([
                        "-c",
                        if round % 10 == 0 {
                            "bash -c true & :"
                        } else {
                            "true"
                        },
                    ]);
                    ensure!(
                        command.status().context("run bash")?.success(),
                        "bash failed"
                    );
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().ok().context("a thread panicked")??;
    }
    Ok(())
}

/// How long a storm of migrations lasts.
const MIGRATING: Duration = Duration::from_secs(10);

/// A process that sleeps until it is dropped.
struct Sleeper(Pid);

impl Sleeper {
    fn start() -> Result<Self> {
        match sys::fork()? {
            ForkResult::Parent { child } => Ok(Self(child)),
            ForkResult::Child => loop {
                thread::sleep(Duration::from_secs(1000));
            },
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Where it was moved into a guarded cgroup this is refused.
        let _ = signal::kill(self.0, signal::SIGKILL);
    }
}

/// Prints the sums of what many processes count.
///
/// It waits for these processes, not for the end of the pipe: whom one of them
/// has moved into a guarded cgroup lives on, with its end of it.
fn crowd<const N: usize>(
    processes: usize,
    mut alone: impl FnMut() -> Result<[u64; N]>,
) -> Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut crowd = Vec::new();
    for _ in 0..processes {
        match sys::fork()? {
            ForkResult::Parent { child } => crowd.push(child),
            ForkResult::Child => {
                let counts = alone()?;
                (&writer).write_all(&counts.map(u64::to_ne_bytes).concat())?;
                std::process::exit(0);
            }
        }
    }
    for pid in crowd {
        let status = waitpid(pid, None)?;
        ensure!(status == WaitStatus::Exited(pid, 0), "{status:?}");
    }
    let mut sums = [0; N];
    for _ in 0..processes {
        for sum in &mut sums {
            let mut count = [0; 8];
            reader.read_exact(&mut count)?;
            *sum += u64::from_ne_bytes(count);
        }
    }
    println!("{}", sums.map(|sum| sum.to_string()).join(" "));
    Ok(())
}

/// 8 processes that move tasks into the target, out of it, to and fro in it and
/// start tasks in it. Prints how many attempts there were and how many went through.
pub(super) fn migrate(target: &Path, outside: &Path, victim: i32) -> Result<()> {
    crowd(8, || migrate_alone(target, outside, victim))
}

fn migrate_alone(target: &Path, outside: &Path, victim: i32) -> Result<[u64; 2]> {
    let own = Sleeper::start()?;
    let within = target.join("child");
    let directory = File::open(target)?;
    let write =
        |cgroup: &Path, pid: i32| fs::write(cgroup.join("cgroup.procs"), pid.to_string()).is_ok();
    attempts(MIGRATING, || {
        [
            write(target, own.0.as_raw()),
            write(&within, own.0.as_raw()),
            write(outside, victim),
            write(&within, victim),
            sys::clone_into(&directory).is_ok(),
        ]
    })
}

/// Counts attempts and successes until the time is up.
fn attempts<const N: usize>(
    time: Duration,
    mut attempt: impl FnMut() -> [bool; N],
) -> Result<[u64; 2]> {
    let (mut attempts, mut successes) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < time {
        for success in attempt() {
            attempts += 1;
            successes += u64::from(success);
        }
    }
    Ok([attempts, successes])
}

/// The processes of a crowd, and how long they go on: long enough for a
/// preemptible kernel to leave out programs on two CPUs.
const CROWD: usize = 16;
const CROWDING: Duration = Duration::from_secs(3);

/// Prints how many writes there were, and how many went through.
pub(super) fn toggle(path: &Path, one: &str, other: &str) -> Result<()> {
    crowd(CROWD, || {
        // One each: writes to one open file wait for each other.
        let file = File::options().write(true).open(path)?;
        attempts(CROWDING, || {
            [one, other].map(|value| (&file).write_all(value.as_bytes()).is_ok())
        })
    })
}

/// Prints how many signals were sent, and how many went through.
pub(super) fn carry_on(pid: i32) -> Result<()> {
    let send = || [signal::kill(Pid::from_raw(pid), signal::SIGCONT).is_ok()];
    crowd(CROWD, || attempts(CROWDING, send))
}

/// Writes to its own memory, each process, through `/proc/self/mem`. Prints how
/// many writes there were, and how many went through.
pub(super) fn poke_own() -> Result<()> {
    static OWN: AtomicU64 = AtomicU64::new(0);
    let place = (&raw const OWN).addr() as u64;
    crowd(CROWD, || {
        let memory = File::options().write(true).open("/proc/self/mem")?;
        attempts(CROWDING, || [memory.write_at(&[1], place).is_ok()])
    })
}

/// Prints how many reads there were, and how many went through.
pub(super) fn peek(pid: i32) -> Result<()> {
    static ANYWHERE: u8 = 0;
    let read = || {
        let mut byte = [0];
        let from = [RemoteIoVec {
            base: (&raw const ANYWHERE).addr(),
            len: 1,
        }];
        let mut to = [IoSliceMut::new(&mut byte)];
        // EFAULT: it was permitted, and there is nothing.
        [!matches!(
            process_vm_readv(Pid::from_raw(pid), &mut to, &from),
            Err(Errno::EPERM)
        )]
    };
    crowd(CROWD, || attempts(CROWDING, read))
}

/// Prints how many attempts to trace the process there were, and how many went through.
pub(super) fn seize(pid: i32) -> Result<()> {
    crowd(CROWD, || attempts(CROWDING, || [sys::seize(pid).is_ok()]))
}

/// Moves the processes of the target out of it, by a write whose pid another
/// thread changes all the time between theirs and one that nobody has. Prints how
/// many writes there were and how many processes are gone.
pub(super) fn flip(target: &Path, outside: &Path) -> Result<()> {
    let file = File::options()
        .write(true)
        .open(outside.join("cgroup.procs"))?;
    let procs = || fs::read_to_string(target.join("cgroup.procs"));
    let (mut writes, mut gone) = (0_u64, 0);
    let start = Instant::now();
    for pid in procs()?.lines() {
        // One byte changes: the kernel reads the one pid or the other, whatever it
        // copies at once. A mixture of two could be anybody's.
        let buffer: [AtomicU8; 16] = Default::default();
        for (byte, digit) in buffer.iter().zip(pid.bytes()) {
            byte.store(digit, Relaxed);
        }
        let end = &buffer[pid.len()];
        let done = AtomicBool::new(false);
        let moved = thread::scope(|scope| -> Result<bool> {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    // Ten times as high: nobody has come that far.
                    for last in [b'9', 0] {
                        end.store(last, Relaxed);
                        for _ in 0..200 {
                            std::hint::spin_loop();
                        }
                    }
                }
            });
            let mut attempt = || -> Result<bool> {
                while start.elapsed() < MIGRATING {
                    writes += 1;
                    if sys::write_flipping(&file, &buffer).is_ok()
                        && !procs()?.lines().any(|line| line == pid)
                    {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            let moved = attempt();
            done.store(true, Relaxed);
            moved
        })?;
        gone += u32::from(moved);
    }
    println!("{writes} {gone}");
    Ok(())
}
