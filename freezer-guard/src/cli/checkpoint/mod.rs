//! `freezer-guard checkpoint`: drives CRIU under a guard.

mod tree;
mod watch;

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    time::{Duration, SystemTime},
};

use clap::ValueHint;
use freezer_guard::{
    VERSION,
    cgroup::{self, Task},
    criu::{self, Criu, Draft, Evidence, Images, Known, Log, Verdict},
    doctor,
    guard::{Target, chain, wall_clock},
    words::{self, escaped, mebibytes, time_of, timestamp},
};

use super::{
    action_script,
    driver::{self, Driver},
    error::{Error, Result},
    exit::{self, Code},
    guarded::{self, GuardedCommand, Meeting, OnViolation, Options, Outcome},
    say::say,
};
use tree::{Named, Tree};
use watch::Watch;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    named: Named,
    /// The directory of the image, which must not exist yet or must be empty
    ///
    /// For several trees it has a directory for each, with the name of the tree's cgroup.
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
    ///
    /// For several trees it is an object for each, on a line of its own.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    driver: Driver,
}

impl Args {
    pub(super) fn is_verbose(&self) -> bool {
        self.driver.options.is_verbose()
    }
}

/// CRIU's log in the directory of images.
const LOG: &str = "dump.log";

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let options = &args.driver.options;
    let trees = args.named.find()?;
    let is_one = trees.len() == 1;
    if !is_one && args.driver.has_action_script() {
        return Err(Error::ScriptOfSeveral);
    }
    let criu = args.driver.find()?;
    let mut images = Images::create(&args.images_dir)?;
    let mut dumps = Vec::new();
    let mut targets = Vec::new();
    for tree in trees {
        dumps.push(Dump::prepare(args, &criu, &tree, is_one, &mut images)?);
        targets.push(tree.target);
    }
    let done = match dump_all(args, &dumps, targets, images.dir()) {
        Ok(done) => done,
        Err(error) => return abandon(images, &dumps, error),
    };

    let code = done.code();
    let are_complete = dumps.iter().all(|dump| criu::are_complete(&dump.dir));
    let succeeded = code == exit::SUCCESS && are_complete;
    let verdict = Verdict::of(done.held(), done.is_excused(options), succeeded);
    for (dump, status) in dumps.iter_mut().zip(&done.statuses) {
        dump.end(&done, verdict, *status);
    }
    let written = conclude(&mut dumps);
    let verdict = dumps[0].evidence.verdict;
    let place = images.publish(verdict)?;
    for (dump, status) in dumps.iter().zip(done.statuses) {
        dump.tell(args, &place, status);
    }
    written?;
    Ok(code_of(verdict, code).into())
}

/// Has CRIU dump each tree, under one guard.
fn dump_all(args: &Args, dumps: &[Dump], targets: Vec<Target>, dir: &Path) -> Result<Outcome> {
    let options = &args.driver.options;
    let is_one = dumps.len() == 1;
    let excuses = options.on_violation == OnViolation::Warn;
    for dump in dumps {
        Draft::write(&dump.dir, &dump.evidence, excuses, !is_one)?;
    }
    let meeting = match is_one {
        true => None,
        false => {
            let doing = || format!("make a socket in {}", dir.display());
            Some(Meeting::call(dir).map_err(Error::io(doing()))?)
        }
    };
    let commands: Vec<_> = dumps.iter().map(|dump| dump.command.clone()).collect();
    let watches = dumps.iter().map(|dump| dump.watch(options));
    let mut watches: Vec<_> = watches.collect();
    let done = guarded::run(GuardedCommand {
        options,
        targets,
        named: !is_one || args.named.is_by_cgroup(),
        roots: dumps.iter().map(|dump| dump.evidence.pid).collect(),
        freeze: true,
        thaw: false,
        restores: false,
        commands: &commands,
        meeting,
        watch: Some(&mut || watches.iter_mut().for_each(Watch::look)),
    });
    if !is_one {
        // It would do no harm.
        let _ = Meeting::close(dir);
    }
    done
}

/// The dump of one tree.
struct Dump {
    /// The name of its directory among those of several.
    name: Option<OsString>,
    dir: PathBuf,
    command: Vec<OsString>,
    evidence: Evidence,
}

impl Dump {
    fn prepare(
        args: &Args,
        criu: &Criu,
        tree: &Tree,
        is_one: bool,
        images: &mut Images,
    ) -> Result<Self> {
        let name = (!is_one).then(|| tree.name.clone());
        let dir = match &name {
            Some(name) => images.add(name)?,
            None => images.dir().to_owned(),
        };
        let parent = args.parent.as_deref().map(|parent| {
            let parent = name
                .as_ref()
                .map_or(parent.into(), |name| parent.join(name));
            images.refer_to(&dir, &parent, tree.root.pid)
        });
        let parent = parent.transpose()?;
        let paths = tree.target.iter().map(|cgroup| cgroup.path().to_owned());
        let cgroups: Vec<_> = paths.collect();
        let freezer = cgroups
            .first()
            .ok_or_else(|| Error::Unexpected("the target has no cgroup".to_owned()))?;
        let command = args.command(criu, tree.root.pid, freezer, &dir, parent.as_deref())?;
        let evidence = args.evidence(criu, &command, tree.root.clone(), cgroups, parent);
        Ok(Self {
            name,
            dir,
            command,
            evidence,
        })
    }

    fn watch<'a>(&self, options: &'a Options) -> Watch<'a> {
        Watch::new(self.name.as_deref(), Log::new(&self.dir, LOG), options)
    }

    /// Adds the outcome to the evidence.
    fn end(&mut self, done: &Outcome, verdict: Verdict, status: ExitStatus) {
        let evidence = &mut self.evidence;
        evidence.verdict = verdict;
        evidence.exit_code = guarded::code_of(status).0;
        evidence.left_running =
            cgroup::process(evidence.pid).is_ok_and(|process| process.is_some());
        evidence.memory_bytes = criu::bytes(&self.dir, "pages-");
        evidence.image_bytes = criu::bytes(&self.dir, "");
        let (started, ended) = (wall_clock(done.started_ns), wall_clock(done.ended_ns));
        let created = Log::new(&self.dir, LOG).begun();
        evidence.log_begun = created.and_then(|created| log_begun(created, &started, &ended));
        evidence.started = Some(started);
        evidence.ended = Some(ended);
        evidence.guard.clone_from(&done.guard);
    }
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

/// Writes the evidence of each, after the images. If one cannot be written, none is good.
fn conclude(dumps: &mut [Dump]) -> Result<()> {
    let written: Result<Vec<()>> = dumps.iter_mut().map(Dump::conclude).collect();
    if written.is_err() {
        for dump in dumps.iter_mut() {
            if dump.evidence.verdict.is_usable() {
                dump.evidence.verdict = Verdict::Failed;
                // Without evidence it is not good either.
                let _ = dump.conclude();
            }
        }
    }
    written.map(drop)
}

impl Dump {
    /// Writes the evidence, after the images. If the disk is full, the evidence that the action
    /// script has written does for a good image; without evidence an image is not called good.
    fn conclude(&mut self) -> Result<()> {
        let (evidence, dir) = (&mut self.evidence, &self.dir);
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
fn abandon(images: Images, dumps: &[Dump], error: Error) -> Result<ExitCode> {
    if dumps.iter().all(|dump| is_known(&dump.dir, None)) {
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

impl Dump {
    fn tell(&self, args: &Args, place: &Path, status: ExitStatus) {
        let evidence = &self.evidence;
        let place = &self
            .name
            .as_ref()
            .map_or(place.into(), |name| place.join(name));
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
        dir: &Path,
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
        add("-D", dir.as_ref());
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
