//! The host's service: it keeps the programs loaded, guards what checkpointers
//! write that nobody has put under a guard, and answers on a socket.
//!
//! It owns nothing that has to outlive it: guards are in the kernel.

pub(crate) mod access;
mod accounts;
mod begin;
pub(crate) mod config;
pub(crate) mod error;
mod features;
pub(crate) mod history;
mod http;
mod idl;
mod journal;
mod known;
pub(crate) mod listen;
mod log;
pub(crate) mod metrics;
mod news;
mod replace;
pub(crate) mod reply;
mod routine;
mod socket;
mod units;
pub(crate) mod varlink;
mod worker;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitCode,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use freezer_guard::{
    guard::{self, Event, EventDecoder, Status, automatic},
    kernel::{self, DaemonLock, KernelLog, Reader},
    words::join,
};
use freezer_guard_abi::{EventKind, GuardId, Level, LogLevel, RawEvent, Unguarded};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Mutex, broadcast, mpsc},
    task::{JoinHandle, LocalSet, spawn_local, yield_now},
    time::{Instant, interval, timeout},
};
use tracing::{error, info, warn};

use accounts::Accounts;
use config::Config;
use error::{Error, Result};
use history::History;
use listen::{Address, Listener, Passed};
use metrics::{Metrics, Page};
use news::What;
use routine::Routine;
use worker::Job;

/// How often what is due is looked for.
const TICK: Duration = Duration::from_millis(500);
/// How long each of three steps may take when the daemon is told to stop: the last events, the
/// end of the watch, and threads that are still under way.
const STOPPING: Duration = Duration::from_millis(1500);
/// Whether it has been told so.
static IS_STOPPING: AtomicBool = AtomicBool::new(false);
/// How many events a slow follower may fall behind.
const BACKLOG: usize = 4096;
/// How long events are read before something else gets its turn.
const TURN: Duration = Duration::from_millis(5);

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    /// The file of the configuration.
    pub(crate) config: PathBuf,
    /// In place of what the configuration says.
    pub(crate) kernel_log: Option<LogLevel>,
    /// Where metrics are served, besides the sockets from systemd.
    pub(crate) metrics: Vec<Address>,
}

/// What all tasks share.
struct Daemon {
    config_path: PathBuf,
    /// In place of what the configuration says.
    kernel_log: Option<LogLevel>,
    /// The log of the BPF programs, unless it is off.
    lines: RefCell<Option<KernelLog>>,
    config: RefCell<Config>,
    metrics: RefCell<Metrics>,
    /// Held while guards that have ended are counted.
    counting: Mutex<()>,
    /// Guards that have ended and were counted, whose targets are frozen still: another guard holds
    /// them.
    frozen: RefCell<BTreeSet<GuardId>>,
    history: RefCell<History>,
    events: broadcast::Sender<Event>,
    jobs: mpsc::UnboundedSender<Job>,
    /// Whether everything is loaded.
    ready: Cell<bool>,
    /// The guards that are being begun for users who are not trusted.
    beginning: Rc<Accounts>,
    /// When the guards of users end at the latest.
    deadlines: RefCell<BTreeMap<GuardId, Instant>>,
    /// The checkpoints that have no guard, as far as they are known to go on.
    unguarded: RefCell<BTreeSet<GuardId>>,
    /// The incidents against each guard that are in the log already.
    logged: RefCell<BTreeMap<GuardId, BTreeSet<What>>>,
}

/// Runs the daemon until it is told to stop.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    log::begin();
    let config = Config::load(&options.config)?;
    kernel::may_use_bpf()?;
    guard::refuse_pid_namespace()?;
    let _lock = DaemonLock::take()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start the runtime"))?;
    let ended = LocalSet::new().block_on(&runtime, run(options, config));
    // A thread that still waits, for a lock or a slow disk, ends with the process.
    runtime.shutdown_timeout(STOPPING);
    ended?;
    Ok(ExitCode::SUCCESS)
}

async fn run(options: &Options, config: Config) -> Result<()> {
    let (jobs, orders) = mpsc::unbounded_channel();
    let daemon = Rc::new(Daemon::new(options, config, jobs));
    let mut stop = hear(SignalKind::terminate())?;
    let mut interrupt = hear(SignalKind::interrupt())?;
    let mut reload = hear(SignalKind::hangup())?;
    let passed = Passed::take()?;
    let listener = socket::listen(passed.varlink, &daemon.config.borrow().group)?;
    let scraped = Listener::all(passed.metrics, &options.metrics)?;
    let mut decoder = EventDecoder::default();
    let mut reader = tokio::select! {
        started = daemon.start() => daemon.take_up(&mut decoder, started?),
        // Somebody may hold the lock.
        _ = stop.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut starting = None;
    let mut has_more = false;
    spawn_local(socket::serve(daemon.clone(), listener));
    http::begin(&daemon, scraped)?;
    let worker = spawn_local(worker::keep(daemon.clone(), orders));
    notify(&[NotifyState::Ready]);

    let mut tick = interval(TICK);
    let mut routine = Routine::begin();
    loop {
        tokio::select! {
            _ = stop.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => daemon.reload(),
            () = ready(&mut reader) => has_more = daemon.take_all(&mut decoder, &mut reader),
            () = yield_now(), if has_more => has_more = daemon.take_all(&mut decoder, &mut reader),
            started = ended(&mut starting) => {
                starting = None;
                reader = daemon.take_up(&mut decoder, started?);
            }
            _ = tick.tick() => {
                // Nothing that somebody waits for depends on the kernel's word alone.
                has_more = daemon.take_all(&mut decoder, &mut reader);
                daemon.write_lines();
                notify(&[NotifyState::Watchdog]);
                daemon.end_overdue();
                if reader.is_none() && starting.is_none() {
                    let daemon = daemon.clone();
                    starting = Some(spawn_local(async move { daemon.start().await }));
                }
                daemon.tell_lost(reader.as_mut());
                routine.go_on(&daemon);
            }
        }
    }
    stop_working(&daemon, worker, reader).await
}

fn hear(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(Error::io("listen for signals"))
}

/// Lets everything come to its end that has begun, but for guards.
async fn stop_working(
    daemon: &Daemon,
    worker: JoinHandle<()>,
    reader: Option<Reader>,
) -> Result<()> {
    IS_STOPPING.store(true, Ordering::Relaxed);
    notify(&[NotifyState::Stopping]);
    info!("stopping; guards in force stay in force");
    // The guards that have just ended are logged.
    daemon.order(Job::Stop);
    if timeout(STOPPING, worker).await.is_err() {
        warn!("stopping takes too long: the log may lack guards that have just ended");
    }
    drop(reader);
    if let Ok(ended) = timeout(STOPPING, blocking(automatic::unwatch)).await {
        return ended;
    }
    warn!("the lock on the pins is taken: the programs that watch stay attached");
    Ok(())
}

/// Returns when there may be an event.
async fn ready(reader: &mut Option<Reader>) {
    match reader {
        Some(reader) => reader.ready().await,
        None => std::future::pending().await,
    }
}

/// Returns when the task has ended, if there is one.
async fn ended<T>(task: &mut Option<JoinHandle<Result<T>>>) -> Result<T> {
    match task {
        Some(task) => task.await?,
        None => std::future::pending().await,
    }
}

/// Tells systemd, if it listens.
fn notify(state: &[NotifyState<'_>]) {
    // It may have gone; nothing depends on it.
    let _ = sd_notify::notify(state);
}

/// Runs what waits for locks and for the kernel where it holds up nobody.
async fn blocking<T: Send + 'static, E: Into<Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?.map_err(Into::into)
}

impl Daemon {
    fn new(options: &Options, config: Config, jobs: mpsc::UnboundedSender<Job>) -> Self {
        Self {
            config_path: options.config.clone(),
            kernel_log: options.kernel_log,
            lines: RefCell::default(),
            config: RefCell::new(config),
            metrics: RefCell::default(),
            counting: Mutex::default(),
            frozen: RefCell::default(),
            history: RefCell::new(History::open()),
            events: broadcast::channel(BACKLOG).0,
            jobs,
            ready: Cell::new(false),
            beginning: Rc::default(),
            deadlines: RefCell::default(),
            unguarded: RefCell::default(),
            logged: RefCell::default(),
        }
    }

    /// Loads everything and returns the events to come and the guards in force. `None`: another
    /// version of this program holds guards; to be tried again.
    async fn start(&self) -> Result<Option<(Reader, Vec<Status>)>> {
        match self.watch().await {
            Ok(()) => Ok(Some(blocking(guard::follow).await?)),
            Err(Error::Guard(guard::Error::Kernel(kernel::Error::OtherVersion))) => {
                notify(&[NotifyState::Status(
                    "waiting for the guards of another version to end",
                )]);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes up the guards in force.
    fn take_up(
        &self,
        decoder: &mut EventDecoder,
        started: Option<(Reader, Vec<Status>)>,
    ) -> Option<Reader> {
        let (reader, guards) = started?;
        decoder.so_far(&guards);
        self.order(Job::Begun(guards.iter().map(|guard| guard.id).collect()));
        self.order(Job::Ended);
        self.order(Job::Expected);
        self.ready.set(true);
        Some(reader)
    }

    /// Sees to it that everything is loaded, and watched if that is wanted.
    async fn watch(&self) -> Result<()> {
        let wanted = self.config.borrow().automatic();
        let is_automatic = wanted.is_some();
        let log = self.kernel_log.unwrap_or(self.config.borrow().log.kernel);
        let watched = move || automatic::watch(wanted.as_ref(), Level::Enforce, log);
        let reasons = blocking(watched).await?;
        self.write_lines();
        // The programs may be others than before.
        let lines = match log {
            LogLevel::Off => None,
            _ => Some(blocking(KernelLog::open).await?),
        };
        *self.lines.borrow_mut() = lines;
        for reason in &reasons {
            warn!("reduced enforcement on this host: {}", guard::chain(reason));
        }
        notify(&[NotifyState::Status(match is_automatic {
            true => "guarding every checkpoint of this host",
            false => "ready for guards over the socket; automatic guards are off",
        })]);
        Ok(())
    }

    /// Writes what the kernel side has told, and in a storm as much as one turn may take.
    fn write_lines(&self) {
        let end = Instant::now() + TURN;
        if let Some(lines) = &mut *self.lines.borrow_mut() {
            while Instant::now() < end
                && let Some(line) = lines.next_line()
            {
                log::kernel(&line);
            }
        }
    }

    /// Tells of events that came too fast, and has the guards looked at again.
    fn tell_lost(&self, reader: Option<&mut Reader>) {
        let lost = reader.map_or(0, Reader::lost);
        if lost > 0 {
            self.metrics.borrow_mut().has_lost(lost);
            // A client may fall behind: it is told so.
            let _ = self.events.send(Event::lost(lost));
            self.order(Job::LookAgain);
        }
    }

    fn order(&self, job: Job) {
        // The worker ends after us.
        let _ = self.jobs.send(job);
    }

    /// Takes the events that are there, and in a storm as many as one turn may take. Returns
    /// whether there may be more: of those the kernel does not tell again.
    fn take_all(&self, decoder: &mut EventDecoder, reader: &mut Option<Reader>) -> bool {
        let Some(reader) = reader else { return false };
        let end = Instant::now() + TURN;
        while let Some(raw) = reader.next_event() {
            self.take(decoder, &raw);
            if Instant::now() >= end {
                return true;
            }
        }
        false
    }

    /// What an event wants of us.
    fn take(&self, decoder: &mut EventDecoder, raw: &RawEvent) {
        let is_incident = matches!(
            EventKind::ALL.get(raw.kind as usize),
            Some(EventKind::Denial | EventKind::Disturbance)
        );
        let is_logged = is_incident && self.is_logged(raw);
        // A storm of them costs no words.
        if is_logged && self.events.receiver_count() == 0 {
            return;
        }
        let event = decoder.decode(raw);
        match EventKind::ALL.get(raw.kind as usize) {
            Some(EventKind::Begun) => self.order(Job::Begun(vec![raw.guard])),
            Some(EventKind::Ended) => self.order(Job::Ended),
            Some(EventKind::Candidate) => self.order(Job::Expected),
            // Nor must it pile up where the worker waits for a lock.
            Some(EventKind::Denial | EventKind::Disturbance) if is_logged => {}
            Some(EventKind::Denial | EventKind::Disturbance) => {
                self.order(Job::Log(Box::new(event.clone())));
            }
            // Each write to a freezer tells it.
            Some(EventKind::Unguarded) if self.is_unguarded_already(raw.guard) => {}
            Some(EventKind::Unguarded) => {
                let reason = Unguarded::name_of(raw.detail);
                self.metrics.borrow_mut().was_unguarded(reason);
                error!(
                    cgroup = join(&event.cgroups, " "),
                    holder_pid = raw.pid,
                    kind = "unguarded",
                    "unguarded: {}",
                    event.about
                );
            }
            Some(EventKind::Checkpointing) | None => {}
        }
        // Nobody may listen.
        let _ = self.events.send(event);
    }

    /// Has the guards ended that users have held for too long.
    fn end_overdue(&self) {
        let now = Instant::now();
        self.deadlines.borrow_mut().retain(|id, due| {
            let is_overdue = *due <= now;
            if is_overdue {
                self.order(Job::Overdue(*id));
            }
            !is_overdue
        });
    }

    fn reload(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
        match Config::load(&self.config_path) {
            Ok(config) => {
                info!("reloaded {}", self.config_path.display());
                *self.config.borrow_mut() = config;
                self.order(Job::Watch);
            }
            Err(error) => {
                error!(
                    "{}; the service keeps its configuration",
                    guard::chain(&error)
                );
            }
        }
        notify(&[NotifyState::Ready]);
    }

    /// The metrics. No guard ends between the tally and the counters: a guard counts once.
    async fn metrics(&self) -> Result<Page> {
        let _counting = self.counting.lock().await;
        let tally = blocking(guard::tally).await?;
        let (frozen, history) = (self.frozen.borrow(), self.history.borrow());
        let has_ended = |id| frozen.contains(&id) || history.has(id);
        Ok(self.metrics.borrow().page(&tally, has_ended))
    }
}
