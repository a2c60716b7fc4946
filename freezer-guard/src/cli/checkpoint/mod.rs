//! `freezer-guard checkpoint`: drives CRIU under a guard.

mod dump;
mod tree;
mod watch;

use std::{
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
};

use clap::ValueHint;
use freezer_guard::{
    criu::{self, Draft, Evidence, Images, Known, Log, Verdict},
    guard::{Target, chain},
    words::mebibytes,
};

use super::{
    driver::{self, Driver},
    error::{Error, Result},
    exit::{self, Code},
    guarded::{self, GuardedCommand, Meeting, OnViolation, Outcome},
    say::say,
};
use dump::Dump;
use tree::Named;
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

    /// Whether another image is to build on this one, or this one on another.
    fn tracks_memory(&self) -> bool {
        self.pre_dump || self.parent.is_some()
    }
}

/// CRIU's log in the directory of images.
const LOG: &str = "dump.log";

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let options = &args.driver.options;
    let trees = args.named.find()?;
    let is_one = trees.len() == 1;
    if !is_one && args.driver.may_have_action_script() {
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
    if args.tracks_memory() {
        criu.check_tracking()?;
    }
    let done = match dump_all(args, &dumps, targets, images.dir()) {
        Ok(done) => done,
        Err(error) => return abandon(images, &dumps, error),
    };

    let code = done.code();
    let are_complete = dumps.iter().all(|dump| criu::are_complete(&dump.dir));
    let succeeded = code == exit::SUCCESS && are_complete;
    let (held, excused) = (done.held(), done.is_excused(options));
    for (dump, status) in dumps.iter_mut().zip(&done.statuses) {
        // Once all may end their trees, the failure of one does not spoil the images of the others.
        let alone = done.is_decided && status.success() && criu::are_complete(&dump.dir);
        dump.end(
            &done,
            Verdict::of(held, excused, succeeded || alone),
            *status,
        );
    }
    let written = conclude(&mut dumps, done.is_decided);
    let verdict = worst(&dumps);
    let place = images.publish(verdict)?;
    let failed = roots_of_failed(&dumps);
    for (dump, status) in dumps.iter().zip(done.statuses) {
        dump.tell(args, &place, status, &failed);
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
        // A socket that stays does no harm.
        let _ = Meeting::close(dir);
    }
    done
}

/// The verdict on all of them.
fn worst(dumps: &[Dump]) -> Verdict {
    let mut verdicts = dumps.iter().map(|dump| dump.evidence.verdict);
    let bad = verdicts.clone().find(|verdict| !verdict.is_usable());
    bad.or_else(|| verdicts.next()).unwrap_or(Verdict::Failed)
}

/// The roots of the trees whose checkpoints failed, and not because another one did.
fn roots_of_failed(dumps: &[Dump]) -> String {
    let failed = dumps
        .iter()
        .filter(|dump| dump.evidence.verdict == Verdict::Failed && !dump.has_given_way);
    let roots: Vec<_> = failed.map(Dump::root).collect();
    match roots.is_empty() {
        true => "another tree".to_owned(),
        false => roots.join(" and that of "),
    }
}

/// Writes the evidence of each, after the images. If one cannot be written, none is good, unless the
/// trees have ended.
fn conclude(dumps: &mut [Dump], is_decided: bool) -> Result<()> {
    let written: Vec<_> = dumps.iter_mut().map(Dump::conclude).collect();
    let written: Result<Vec<()>> = written.into_iter().collect();
    if written.is_err() && !is_decided {
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
    /// `failed`: the roots of those that failed by themselves.
    fn tell(&self, args: &Args, place: &Path, status: ExitStatus, failed: &str) {
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
            Verdict::Failed if self.has_given_way => say(format_args!(
                "the image of {} was complete, but the checkpoint of {failed} failed, and freezer-guard keeps the images of all trees or of none",
                self.root()
            )),
            Verdict::Failed => driver::say_failure(&log, status),
        }
        if !evidence.verdict.is_usable() {
            say(format_args!(
                "{} {}",
                self.root(),
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
