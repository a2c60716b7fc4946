//! `freezer-guard checkpoint`: drives CRIU under a guard.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant, SystemTime},
};

use clap::ValueHint;
use clap_complete::engine::ArgValueCompleter;
use freezer_guard::{
    VERSION,
    cgroup::{self, Cgroup, Task},
    criu::{self, Criu, Draft, Evidence, Images, Known, Log, Progress, Verdict},
    doctor,
    guard::{Target, chain, wall_clock},
    words::{self, escaped, mebibytes, time_of, timestamp},
};

use super::{
    action_script, complete,
    driver::{self, Driver},
    error::{Error, Result},
    exit::{self, Code},
    guarded::{self, GuardedCommand, OnViolation, Options},
    say::say,
    target,
};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    what: What,
    /// The directory of the image, which must not exist yet or must be empty
    ///
    /// CRIU writes the image into DIR.unfinished. freezer-guard renames it to DIR once it is
    /// complete, undisturbed and on the disk, to DIR.failed if CRIU fails, and to DIR.violated after
    /// a violation.
    #[arg(long, short = 'D', value_name = "DIR", value_hint = ValueHint::DirPath)]
    images_dir: PathBuf,
    /// Let the tree run on after the checkpoint; by default CRIU ends it
    #[arg(long, short = 'R')]
    leave_running: bool,
    /// Dump the memory only, and let the tree run on
    ///
    /// A later checkpoint with --parent DIR then writes only the memory that has changed since, so
    /// it stops the tree for a shorter time.
    #[arg(long, conflicts_with = "leave_running")]
    pre_dump: bool,
    /// Write only the memory that has changed since the checkpoint in this directory
    ///
    /// The new image refers to that one for the rest. It has to be the last checkpoint of this tree
    /// that --pre-dump or --parent has made, and only one image can build on it.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    parent: Option<PathBuf>,
    /// Print the evidence of the image as one JSON object, as in DIR/freezer-guard.json
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    driver: Driver,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Checkpoint the tree of this process, and guard the cgroups that it is in
    #[arg(long, short = 't', value_name = "PID")]
    pid: Option<i32>,
    /// Checkpoint the process tree in this cgroup: its directory
    #[arg(long, value_name = "PATH", add = ArgValueCompleter::new(complete::cgroups))]
    cgroup: Option<PathBuf>,
    /// Checkpoint the process tree of this systemd unit, such as foo.service
    #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::units))]
    unit: Option<String>,
}

impl Args {
    pub(super) fn is_verbose(&self) -> bool {
        self.driver.options.is_verbose()
    }
}

impl What {
    /// What to guard, and the root of what to dump.
    fn find(&self) -> Result<(Target, Task)> {
        let target = match (self.pid, &self.cgroup, &self.unit) {
            (Some(pid), ..) => {
                let root = cgroup::process(pid)?.ok_or(cgroup::Error::NoProcess(pid))?;
                return Ok((target::of_pid(pid)?, root));
            }
            (_, Some(path), _) => vec![Cgroup::open(path)?],
            (_, _, unit) => cgroup::of_unit(unit.as_deref().unwrap_or_default())?,
        };
        let root = cgroup::root(&target.iter().collect::<Vec<_>>())?;
        Ok((target, root))
    }
}

/// CRIU's log in the directory of images.
const LOG: &str = "dump.log";

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let options = &args.driver.options;
    let (target, root) = args.what.find()?;
    let criu = args.driver.find()?;
    let mut images = Images::create(&args.images_dir)?;
    let parent = args.parent.as_deref();
    let parent = parent
        .map(|parent| images.refer_to(parent, root.pid))
        .transpose()?;
    let paths = target.iter().map(|cgroup| cgroup.path().to_owned());
    let cgroups: Vec<_> = paths.collect();
    let freezer = cgroups
        .first()
        .ok_or_else(|| Error::Unexpected("the target has no cgroup".to_owned()))?;
    let pid = root.pid;
    let command = args.command(&criu, pid, freezer, &images, parent.as_deref())?;
    let mut evidence = args.evidence(&criu, &command, root, cgroups, parent);
    let excuses = options.on_violation == OnViolation::Warn;
    Draft::write(images.dir(), &evidence, excuses)?;
    let mut watch = Watch::new(Log::new(images.dir(), LOG), options);
    let done = guarded::run(GuardedCommand {
        options,
        targets: vec![target],
        named: args.what.pid.is_none(),
        root: Some(pid),
        freeze: true,
        thaw: false,
        restores: false,
        command: &command,
        watch: Some(&mut || watch.look()),
    });
    let done = match done {
        Ok(done) => done,
        Err(error) => return abandon(images, error),
    };

    let code = done.code();
    let succeeded = code == exit::SUCCESS && images.are_complete();
    evidence.verdict = Verdict::of(done.held(), done.is_excused(options), succeeded);
    evidence.exit_code = code.0;
    evidence.left_running = cgroup::process(pid).is_ok_and(|process| process.is_some());
    evidence.memory_bytes = images.bytes("pages-");
    evidence.image_bytes = images.bytes("");
    let (started, ended) = (wall_clock(done.started_ns), wall_clock(done.ended_ns));
    let created = Log::new(images.dir(), LOG).begun();
    evidence.log_begun = created.and_then(|created| log_begun(created, &started, &ended));
    evidence.started = Some(started);
    evidence.ended = Some(ended);
    evidence.guard = done.guard;
    let written = conclude(&mut evidence, images.dir());
    let place = images.publish(evidence.verdict)?;
    tell(args, &evidence, &place, done.status);
    written?;
    Ok(code_of(evidence.verdict, code).into())
}

/// When CRIU began its log, if the time of the log's file can be that: it cannot if the clock was
/// set meanwhile, or if the file was there before. The clock of files is coarse.
fn log_begun(created: SystemTime, started: &str, ended: &str) -> Option<String> {
    const COARSE: Duration = Duration::from_millis(10);
    let (started, ended) = (time_of(started)?, time_of(ended)?);
    let text = timestamp(created);
    let begun = time_of(&text)?;
    let is_then = begun.checked_add(COARSE)? >= started && begun <= ended;
    is_then.then_some(text)
}

/// Writes the evidence, after the images. If the disk is full, the evidence that the action script
/// has written does for a good image; without evidence an image is not called good.
fn conclude(evidence: &mut Evidence, dir: &Path) -> Result<()> {
    let is_usable = evidence.verdict.is_usable();
    let written = match is_usable {
        true => criu::sync(dir).and_then(|()| evidence.write(dir)),
        false => evidence.write(dir),
    };
    let Err(error) = written else { return Ok(()) };
    if is_usable && is_known(dir, Some(evidence.verdict)) {
        say(format_args!("{}", chain(&error)));
        return Ok(());
    }
    if is_usable {
        evidence.verdict = Verdict::Failed;
    }
    Evidence::remove(dir)?;
    Err(error.into())
}

/// Whether the action script has called the images good, or this.
fn is_known(dir: &Path, verdict: Option<Verdict>) -> bool {
    let known = Known::of_images(dir).ok().flatten();
    known.is_some_and(|known| verdict.is_none_or(|verdict| known.verdict == verdict))
}

fn texts(words: &[OsString]) -> Vec<String> {
    let texts = words.iter().map(|word| word.display().to_string());
    texts.collect()
}

/// The exit code, which tells of a bad image even if CRIU does not.
fn code_of(verdict: Verdict, criu: Code) -> Code {
    match verdict {
        Verdict::Violated => exit::VIOLATED,
        Verdict::Failed if criu == exit::SUCCESS => exit::INTERNAL,
        _ => criu,
    }
}

/// Gives up, and says where the unfinished checkpoint is.
fn abandon(images: Images, error: Error) -> Result<ExitCode> {
    if is_known(images.dir(), None) {
        let place = images.keep();
        say(format_args!(
            "the image in {} is complete, and `restore` takes it",
            place.display()
        ));
        return Err(error);
    }
    if let Some(place) = images.abandon()? {
        let place = place.display();
        say(format_args!("the incomplete checkpoint is in {place}"));
    }
    Err(error)
}

fn tell(args: &Args, evidence: &Evidence, place: &Path, status: ExitStatus) {
    let log = Log::new(place, LOG);
    let place = place.display();
    match evidence.verdict {
        Verdict::Good => args.driver.options.step(format_args!(
            "the checkpoint in {place} is good: {} of memory, {} in all",
            mebibytes(evidence.memory_bytes),
            mebibytes(evidence.image_bytes)
        )),
        Verdict::Excused => say(format_args!(
            "the disturbed checkpoint is in {place}, as --on-violation warn asks"
        )),
        Verdict::Violated => say(format_args!(
            "do not trust this checkpoint: its files are in {place}; remove them and take another"
        )),
        Verdict::Failed => driver::say_failure(&log, status),
    }
    if !evidence.verdict.is_usable() {
        say(format_args!(
            "pid {} ({}) {}",
            evidence.pid,
            escaped(&evidence.comm),
            match evidence.left_running {
                true => "was left running",
                false => "has ended",
            }
        ));
    }
    if args.json {
        driver::print(evidence);
    }
}

impl Args {
    /// Returns the evidence as far as it is known before CRIU starts.
    fn evidence(
        &self,
        criu: &Criu,
        command: &[OsString],
        root: Task,
        cgroups: Vec<PathBuf>,
        parent: Option<PathBuf>,
    ) -> Evidence {
        Evidence {
            verdict: Verdict::Failed,
            freezer_guard: VERSION.to_owned(),
            kernel: doctor::release(),
            criu: criu.version_text().to_owned(),
            command: texts(command),
            exit_code: exit::SUCCESS.0,
            pid: root.pid,
            left_running: false,
            comm: root.comm,
            cgroups_base64: words::all_base64(&cgroups),
            cgroups,
            pre_dump: self.pre_dump,
            parent,
            memory_bytes: 0,
            image_bytes: 0,
            started: None,
            log_begun: None,
            ended: None,
            guard: None,
        }
    }

    /// CRIU's command line.
    fn command(
        &self,
        criu: &Criu,
        root: i32,
        freezer: &Path,
        images: &Images,
        parent: Option<&Path>,
    ) -> Result<Vec<OsString>> {
        let dump = match self.pre_dump {
            true => "pre-dump",
            false => "dump",
        };
        let mut command = vec![criu.path().into(), dump.into()];
        let mut add = |option: &str, value: &OsStr| {
            command.push(option.into());
            command.push(value.to_owned());
        };
        add("-t", root.to_string().as_ref());
        add("-D", images.dir().as_ref());
        add("-o", LOG.as_ref());
        add("--freeze-cgroup", freezer.as_ref());
        if let Some(parent) = parent {
            add("--prev-images-dir", parent.as_ref());
        }
        add("--action-script", action_script::script()?.as_ref());
        let flags = [
            ("-v4", true),
            ("--leave-running", self.leave_running),
            // What changes from here on is for the next one to write.
            ("--track-mem", self.pre_dump || parent.is_some()),
        ];
        let flags = flags.into_iter().filter(|(_, wanted)| *wanted);
        command.extend(flags.map(|(flag, _)| flag.into()));
        command.extend(self.driver.more.iter().cloned());
        Ok(command)
    }
}

/// Tells how far CRIU is, in growing distances.
struct Watch<'a> {
    log: Log,
    options: &'a Options,
    /// When it was looked at first: CRIU runs from then on.
    begun: Option<Instant>,
    next: Duration,
    last: (Duration, Progress),
}

impl<'a> Watch<'a> {
    const SHORTEST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(10);

    fn new(log: Log, options: &'a Options) -> Self {
        Self {
            log,
            options,
            begun: None,
            next: Self::SHORTEST,
            last: (Duration::ZERO, Progress::default()),
        }
    }

    fn look(&mut self) {
        let elapsed = self.begun.get_or_insert_with(Instant::now).elapsed();
        if elapsed < self.next {
            return;
        }
        self.next = elapsed + (elapsed / 4).clamp(Self::SHORTEST, Self::LONGEST);
        let now = self.log.progress();
        let (before, then) = std::mem::replace(&mut self.last, (elapsed, now));
        let rate = (now.bytes() - then.bytes()) as f64 / (elapsed - before).as_secs_f64();
        self.options.step(format_args!(
            "{} for {:.0} s: {} processes started, {} pages ({}) written, {}/s",
            now.stage.name(),
            elapsed.as_secs_f64(),
            now.processes,
            now.pages,
            mebibytes(now.bytes()),
            mebibytes(rate as u64),
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::log_begun;
    use freezer_guard::words::timestamp;

    #[test]
    fn a_log_begins_while_criu_runs() {
        let second = |number| SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        let (started, ended) = (timestamp(second(100)), timestamp(second(200)));
        let begun = |created| log_begun(created, &started, &ended);
        let coarse = second(100) - Duration::from_millis(9);
        for created in [coarse, second(100), second(150), second(200)] {
            assert_eq!(begun(created), Some(timestamp(created)));
        }
        let early = second(100) - Duration::from_millis(11);
        for created in [SystemTime::UNIX_EPOCH, early, second(201)] {
            assert_eq!(begun(created), None);
        }
    }
}
