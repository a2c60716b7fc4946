//! `guest-tool`: workloads to guard and every way to write to a file.

mod btf;
mod cri;
mod criu;
mod http;
mod memory;
mod process;
mod stalled;
mod storm;
mod varlink;
mod workload;
mod write;

use std::{
    fs::File,
    io::{BufRead as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use write::Method;

#[derive(Parser)]
#[command(name = "guest-tool", about = "Workloads and writers for the tests")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a tree of processes that count, print its root's pid, detach
    Workload {
        /// Where process N writes its counter, in a file named N
        dir: PathBuf,
        /// A cgroup to join
        #[arg(long)]
        cgroup: Vec<PathBuf>,
        /// How many children the root has
        #[arg(long, default_value_t = 3)]
        processes: usize,
        /// How long each waits between two counts, milliseconds
        #[arg(long, default_value_t = 10)]
        pause_ms: u64,
    },
    /// Count here, with children that count; in the foreground
    Count {
        /// Where process N writes its counter, in a file named N
        dir: PathBuf,
        /// How many children there are
        #[arg(long, default_value_t = 0)]
        processes: usize,
    },
    /// Do nothing, for ever
    Idle,
    /// Call containerd's CRI
    Cri {
        #[command(subcommand)]
        call: cri::Call,
    },
    /// Write VALUE; ends with the errno
    Write {
        #[arg(value_enum)]
        method: Method,
        path: PathBuf,
        value: String,
    },
    /// Open, print `ready`, wait for a line, write
    Late { path: PathBuf, value: String },
    /// As `late`, with a descriptor that a child opened and sent
    Passed { path: PathBuf, value: String },
    /// Write from a second thread
    Threads { path: PathBuf, value: String },
    /// Run a command in a grandchild with a session of its own
    Daemon {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Join a cgroup, make it the root of a cgroup namespace, mount it, write
    Cgroupns {
        /// The directory to join
        cgroup: PathBuf,
        /// The file below it
        file: PathBuf,
        value: String,
    },
    /// Run a command where PATH is not mounted
    Unmounted {
        path: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command where the directory PATH is empty
    Hidden {
        path: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command where names in the kernel's BTF are others
    Renamed {
        /// The changes, as `btf::change` takes them
        #[arg(required = true)]
        names: Vec<String>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command as root without CAP_SYS_ADMIN, CAP_BPF and CAP_PERFMON
    Powerless {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Join cgroups, print `ready` and hang where no freezer gets at us, until
    /// there is a line to read
    Stall {
        #[arg(long)]
        cgroup: Vec<PathBuf>,
    },
    /// Join a cgroup, print `ready`, and end with the parent, or by SIGALRM after some seconds
    Mortal { cgroup: PathBuf, seconds: u32 },
    /// Lock a file or directory, print `ready`, wait for a line
    Lock { path: PathBuf },
    /// 20 threads that start many short processes
    Storm,
    /// Write with a write that hangs in the kernel, print `ready`, wait for a
    /// line, let it go on
    Stalled {
        #[arg(long)]
        splice: bool,
        path: PathBuf,
        value: String,
    },
    /// Write to the memory of a process, or trace it; ends with the errno
    Access {
        #[arg(value_enum)]
        way: memory::Way,
        pid: i32,
    },
    /// Trace a process, print `ready`, wait for a line
    Trace { pid: i32 },
    /// Start a tree in a cgroup that forks all the time, print its root's pid
    Bomb {
        cgroup: PathBuf,
        #[arg(long, default_value_t = 200)]
        processes: usize,
    },
    /// Migrate tasks into TARGET, out of it and within for 10 s, in 8 processes
    Migrate {
        target: PathBuf,
        outside: PathBuf,
        victim: i32,
    },
    /// Write two values to a file in turn for some seconds, in 16 processes
    Toggle {
        path: PathBuf,
        one: String,
        other: String,
    },
    /// Send SIGCONT to a process for some seconds, in 16 processes
    Continue { pid: i32 },
    /// Read the memory of a process for some seconds, in 16 processes
    Peek { pid: i32 },
    /// Trace a process for some seconds, in 16 processes
    Seize { pid: i32 },
    /// Start a task in a cgroup by CLONE_INTO_CGROUP; it ends at once
    CloneInto { cgroup: PathBuf },
    /// Write to /proc/self/mem for some seconds, in 16 processes
    PokeOwn,
    /// Dump a tree by a message to CRIU
    CriuDump(criu::Dump),
    /// Call a Varlink method
    Varlink(varlink::Call),
    /// Connect many times, and send what is no message
    Garbage { socket: PathBuf, connections: u32 },
    /// How many connections are answered, and how long a message may be
    VarlinkLimits { socket: PathBuf, connections: usize },
    /// Send an HTTP request and print the reply
    Http(http::Request),
    /// Connect many times, print `ready` and stay silent until there is a line to read
    Silent { address: String, connections: usize },
    /// Scrape in 8 threads, print `ready`, until there is a line to read
    ScrapeStorm { address: String },
    /// Move the processes of TARGET out by writes that change on their way
    Flip { target: PathBuf, outside: PathBuf },
}

/// Runs the tool; the exit code is the errno of a write that failed.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-tool: {error:#}");
            let errno = error.chain().find_map(|cause| {
                let io = cause
                    .downcast_ref::<std::io::Error>()
                    .and_then(|e| e.raw_os_error());
                io.or_else(|| {
                    cause
                        .downcast_ref::<nix::Error>()
                        .map(|errno| *errno as i32)
                })
            });
            ExitCode::from(
                errno
                    .and_then(|errno| u8::try_from(errno).ok())
                    .unwrap_or(255),
            )
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Workload {
            dir,
            cgroup,
            processes,
            pause_ms,
        } => workload::start(&dir, &cgroup, processes, Duration::from_millis(pause_ms)),
        Task::Count { dir, processes } => {
            let pause = Duration::from_millis(10);
            workload::count_all(&dir, processes, pause, std::io::sink())
        }
        Task::Idle => loop {
            std::thread::park();
        },
        Task::Cri { call } => cri::run(call),
        Task::Write {
            method,
            path,
            value,
        } => write::write(method, &path, &value),
        Task::Late { path, value } => write::late(&path, &value),
        Task::Passed { path, value } => write::passed(&path, &value),
        Task::Threads { path, value } => write::from_thread(path, value),
        Task::Daemon { command } => process::daemon(&command),
        Task::Cgroupns {
            cgroup,
            file,
            value,
        } => process::cgroupns(&cgroup, &file, &value),
        Task::Unmounted { path, command } => process::unmounted(&path, &command),
        Task::Hidden { path, command } => process::hidden(&path, &command),
        Task::Renamed { names, command } => process::renamed(&names, &command),
        Task::Powerless { command } => process::powerless(&command),
        Task::Stall { cgroup } => workload::stall(&cgroup),
        Task::Mortal { cgroup, seconds } => workload::mortal(&cgroup, seconds),
        Task::Lock { path } => process::lock(&path),
        Task::Storm => storm::storm(),
        Task::Stalled {
            splice,
            path,
            value,
        } => match splice {
            true => stalled::by_splice(&path, &value),
            false => stalled::by_userfaultfd(&path, &value),
        },
        Task::Access { way, pid } => memory::access(way, pid),
        Task::Trace { pid } => memory::hold(pid),
        Task::Bomb { cgroup, processes } => workload::bomb(&cgroup, processes),
        Task::Migrate {
            target,
            outside,
            victim,
        } => storm::migrate(&target, &outside, victim),
        Task::Toggle { path, one, other } => storm::toggle(&path, &one, &other),
        Task::Continue { pid } => storm::carry_on(pid),
        Task::Peek { pid } => storm::peek(pid),
        Task::Seize { pid } => storm::seize(pid),
        Task::CloneInto { cgroup } => Ok(crate::sys::clone_into(&File::open(cgroup)?)?),
        Task::PokeOwn => storm::poke_own(),
        Task::CriuDump(dump) => criu::dump(&dump),
        Task::Varlink(call) => varlink::call(&call),
        Task::Garbage {
            socket,
            connections,
        } => varlink::garbage(&socket, connections),
        Task::VarlinkLimits {
            socket,
            connections,
        } => varlink::limits(&socket, connections),
        Task::Http(request) => http::request(&request),
        Task::Silent {
            address,
            connections,
        } => http::silent(&address, connections),
        Task::ScrapeStorm { address } => http::storm(&address),
        Task::Flip { target, outside } => storm::flip(&target, &outside),
    }
}

/// Says that we are ready, then waits for the word to go.
fn ready() -> Result<()> {
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}
