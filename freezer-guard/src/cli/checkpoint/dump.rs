//! The dump of one tree: CRIU's command, and the evidence of the image.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use freezer_guard::{
    VERSION,
    cgroup::{self, Task},
    criu::{self, Criu, Draft, Evidence, Images, Log, Verdict},
    doctor,
    guard::wall_clock,
    words::{self, escaped, time_of, timestamp},
};

use super::{Args, LOG, Watch, tree::Tree};
use crate::cli::{
    action_script,
    error::{Error, Result},
    exit,
    guarded::{self, Options, Outcome},
};

/// The dump of one tree.
pub(super) struct Dump {
    /// The name of its directory among those of several.
    pub(super) name: Option<OsString>,
    pub(super) dir: PathBuf,
    pub(super) command: Vec<OsString>,
    pub(super) evidence: Evidence,
    /// Whether its images were complete, and it failed because another one did.
    pub(super) has_given_way: bool,
}

impl Dump {
    pub(super) fn prepare(
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
        let command = args.command(
            criu,
            tree.root.pid,
            freezer,
            &dir,
            parent.as_deref(),
            !is_one,
        )?;
        let evidence = args.evidence(criu, &command, tree.root.clone(), cgroups, parent);
        Ok(Self {
            name,
            dir,
            command,
            evidence,
            has_given_way: false,
        })
    }

    /// The root of the tree, in words.
    pub(super) fn root(&self) -> String {
        let Evidence { pid, comm, .. } = &self.evidence;
        format!("pid {pid} ({})", escaped(comm))
    }

    pub(super) fn watch<'a>(&self, options: &'a Options) -> Watch<'a> {
        Watch::new(self.name.as_deref(), Log::new(&self.dir, LOG), options)
    }

    /// Adds the outcome to the evidence.
    pub(super) fn end(&mut self, done: &Outcome, verdict: Verdict, status: ExitStatus) {
        // The evidence takes the place of the draft.
        let draft = Draft::read(&self.dir).ok();
        self.has_given_way = draft.is_some_and(|draft| draft.has_another_failed);
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

fn texts(words: &[OsString]) -> Vec<String> {
    let texts = words.iter().map(|word| word.display().to_string());
    texts.collect()
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
        is_one_of_several: bool,
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
            // The next image has the changes from here on.
            ("--track-mem", self.tracks_memory()),
        ];
        // A script of a configuration file would run after ours.
        let flags = flags
            .into_iter()
            .chain([("--no-default-config", is_one_of_several)]);
        let flags = flags.filter(|(_, wanted)| *wanted);
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
