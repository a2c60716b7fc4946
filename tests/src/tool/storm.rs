//! Many processes that do something as often as they can.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal,
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

/// 8 processes that move tasks into the target, out of it, to and fro in it and
/// start tasks in it. Prints how many attempts there were and how many went through.
pub(super) fn migrate(target: &Path, outside: &Path, victim: i32) -> Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    for _ in 0..8 {
        if let ForkResult::Child = sys::fork()? {
            let counts = migrate_alone(target, outside, victim)?;
            (&writer).write_all(&counts.map(u64::to_ne_bytes).concat())?;
            std::process::exit(0);
        }
    }
    drop(writer);
    let mut said = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut said)?;
    ensure!(said.len() == 8 * 16, "not all processes came to an end");
    let mut sums = [0; 2];
    for counts in said.chunks_exact(16) {
        for (sum, count) in sums.iter_mut().zip(counts.chunks_exact(8)) {
            *sum += u64::from_ne_bytes(count.try_into()?);
        }
    }
    println!("{} {}", sums[0], sums[1]);
    Ok(())
}

fn migrate_alone(target: &Path, outside: &Path, victim: i32) -> Result<[u64; 2]> {
    let own = Sleeper::start()?;
    let within = target.join("child");
    let directory = File::open(target)?;
    let write =
        |cgroup: &Path, pid: i32| fs::write(cgroup.join("cgroup.procs"), pid.to_string()).is_ok();
    let (mut attempts, mut successes) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < MIGRATING {
        for success in [
            write(target, own.0.as_raw()),
            write(&within, own.0.as_raw()),
            write(outside, victim),
            write(&within, victim),
            sys::clone_into(&directory).is_ok(),
        ] {
            attempts += 1;
            successes += u64::from(success);
        }
    }
    Ok([attempts, successes])
}

/// Moves the processes of the target out of it, by a write whose pid another
/// thread changes all the time between theirs and one that is nobody's business.
/// Prints how many writes there were and how many processes are gone.
pub(super) fn flip(target: &Path, outside: &Path) -> Result<()> {
    static BUFFER: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
    let own = Sleeper::start()?;
    let victims = fs::read_to_string(target.join("cgroup.procs"))?;
    let victims: Vec<i32> = victims.lines().map(str::parse).collect::<Result<_, _>>()?;
    let file = File::options()
        .write(true)
        .open(outside.join("cgroup.procs"))?;
    let text = |pid: i32| -> [u64; 2] {
        let mut text = [0; 16];
        let digits = pid.to_string();
        text[..digits.len()].copy_from_slice(digits.as_bytes());
        let word = |part: &[u8]| u64::from_ne_bytes(part.try_into().unwrap_or_default());
        [word(&text[..8]), word(&text[8..])]
    };
    static VICTIM: AtomicU64 = AtomicU64::new(0);
    let harmless = text(own.0.as_raw());
    // Pids here have up to 7 digits: the first word alone changes.
    thread::spawn(move || {
        loop {
            BUFFER[0].store(harmless[0], Relaxed);
            for _ in 0..200 {
                std::hint::spin_loop();
            }
            BUFFER[0].store(VICTIM.load(Relaxed), Relaxed);
            for _ in 0..200 {
                std::hint::spin_loop();
            }
        }
    });
    let (mut writes, mut gone) = (0_u64, 0);
    let start = Instant::now();
    for pid in victims {
        VICTIM.store(text(pid)[0], Relaxed);
        loop {
            if start.elapsed() > MIGRATING {
                println!("{writes} {gone}");
                return Ok(());
            }
            writes += 1;
            if sys::write_flipping(&file, &BUFFER).is_ok()
                && !fs::read_to_string(target.join("cgroup.procs"))?
                    .lines()
                    .any(|line| line == pid.to_string())
            {
                gone += 1;
                break;
            }
        }
    }
    println!("{writes} {gone}");
    Ok(())
}
