//! What lies under `/sys/fs/bpf/freezer-guard`. The first guard after a boot loads what it
//! needs, and that stays. Links come with the guards that need them and go with the last.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use freezer_guard_abi::{GuardId, Level, LogLevel, TaskPointer, names};
use nix::fcntl::Flock;

use super::{
    Error, code,
    loading::{Loader, load_iterator},
    lock::{Wait, lock},
    maps::Maps,
    object::OBJECT_ID,
    prerequisites::{self, PIN_DIR},
    programs::{self, Hierarchies, Levels, PROGRAMS, Program},
    reading,
    report::ProgramReport,
    table::{Map as _, Table},
};
use crate::{
    quirks,
    sys::{self, Attachment},
};

/// The right to change what is pinned. User-space writers are one at a time.
#[derive(Debug)]
pub struct Locked {
    _lock: Flock<File>,
    dir: PathBuf,
}

impl Locked {
    /// Waits for the lock. Mounts bpffs if it is not mounted.
    ///
    /// # Errors
    /// Without the capabilities for BPF, if bpffs cannot be used or is not the host's, and if
    /// another process keeps the lock.
    pub fn wait() -> Result<Self, Error> {
        Self::wait_for(Wait::Interruptible)
    }

    /// The same for the end of a guard, from which no signal keeps this process.
    ///
    /// # Errors
    /// Those of [`Locked::wait`].
    pub fn wait_to_the_end() -> Result<Self, Error> {
        Self::wait_for(Wait::ToTheEnd)
    }

    fn wait_for(wait: Wait) -> Result<Self, Error> {
        prerequisites::capabilities()?;
        prerequisites::mount_bpffs()?;
        prerequisites::is_bpffs_of_host()?;
        let dir = PathBuf::from(PIN_DIR);
        let failed = |error| Error::Missing {
            path: PIN_DIR.into(),
            needed_for: "the guards' state is kept there",
            error,
        };
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&dir)
            .map_err(failed)?;
        match prerequisites::foreign_hand(&file) {
            Ok(None) => {}
            Ok(Some(how)) => return Err(failed(io::Error::other(how))),
            Err(error) => return Err(failed(error)),
        }
        Ok(Self {
            _lock: lock(file, wait)?,
            dir,
        })
    }

    /// The maps, if the BPF side is loaded. Removes what a crash during a load
    /// left, and what another version left that holds no guard.
    ///
    /// # Errors
    /// When another version holds guards, or pins cannot be used.
    pub fn open(&self) -> Result<Option<Maps>, Error> {
        if let Some(level) = self.level() {
            return Maps::open(level, &self.dir, &self.control(level)).map(Some);
        }
        if self.other_version_holds_guards() {
            return Err(Error::OtherVersion);
        }
        self.unload()?;
        Ok(None)
    }

    /// Whatever the version, its iterator lists the holders' threads.
    fn other_version_holds_guards(&self) -> bool {
        fs::read(self.dir.join(names::MEMBERS_ITER)).is_ok_and(|members| !members.is_empty())
    }

    /// Pinned last and unpinned first: with it the pins are complete. Its name
    /// tells for which level and from which object they were loaded.
    fn control(&self, level: Level) -> PathBuf {
        self.dir
            .join(format!("control-{}-{OBJECT_ID}", level.name()))
    }

    /// The level that the pinned programs were loaded for.
    pub fn level(&self) -> Option<Level> {
        Level::ALL
            .into_iter()
            .find(|level| self.control(*level).exists())
    }

    /// A link to a name, which bpffs can keep beside pins.
    fn log_mark(&self) -> PathBuf {
        self.dir.join("kernel-log")
    }

    /// How much the pinned programs tell.
    pub fn log_level(&self) -> LogLevel {
        let name = fs::read_link(self.log_mark()).unwrap_or_default();
        let level = name.to_str().and_then(|name| name.parse().ok());
        level.unwrap_or_default()
    }

    /// How far each protection of guards in these hierarchies goes with what is
    /// attached. All `None` when nothing is loaded.
    pub fn levels(&self, hierarchies: Hierarchies) -> Levels {
        match self.level() {
            Some(level) => programs::levels(level, hierarchies, |program| {
                program.link_pin(&self.dir).exists()
            }),
            None => Levels::default(),
        }
    }

    /// How far each protection of guards in these hierarchies goes once everything is attached that
    /// is loaded. All `None` when nothing is loaded.
    pub fn loaded_levels(&self, hierarchies: Hierarchies) -> Levels {
        match self.level() {
            Some(level) => programs::levels(level, hierarchies, |program| {
                program.program_pin(&self.dir).exists() && !program.is_never_called(&self.dir)
            }),
            None => Levels::default(),
        }
    }

    /// The strongest level that the security modules allow, but none above
    /// `at_most`; and why it is no stronger one.
    ///
    /// # Errors
    /// When the modules cannot be told.
    pub fn strongest(at_most: Level) -> Result<(Level, Option<Error>), Error> {
        if at_most < Level::Enforce {
            return Ok((at_most, None));
        }
        Ok(match prerequisites::lsm_inactive()? {
            Some(reason) => (Level::BestEffort, Some(reason)),
            None => (Level::Enforce, None),
        })
    }

    /// What is of use to guards in these hierarchies, and not attached.
    pub fn not_attached(&self, hierarchies: Hierarchies) -> Vec<Error> {
        self.level().map_or_else(Vec::new, |level| {
            programs::at(level)
                .filter(|program| program.is_needed(hierarchies))
                .filter(|program| !program.link_pin(&self.dir).exists())
                .map(|program| match program.is_never_called(&self.dir) {
                    true => program.never_called(level),
                    false => Error::NotAttached(program.name),
                })
                .collect()
        })
    }

    /// Returns the state of each program that guards in these hierarchies need at the loaded
    /// level, and of each that the service has loaded besides.
    pub fn programs(&self, hierarchies: Hierarchies) -> Vec<ProgramReport> {
        let is_loaded = |program: &Program| program.program_pin(&self.dir).exists();
        self.level().map_or_else(Vec::new, |level| {
            programs::at(level)
                .filter(|program| program.is_needed(hierarchies) || is_loaded(program))
                .map(|program| program.report(level, &self.dir))
                .collect()
        })
    }

    /// An upper bound of the calls that got past a program and all its copies since its load, of all
    /// programs.
    pub fn recursion_misses(&self) -> u64 {
        PROGRAMS
            .iter()
            .map(|program| program.left_out(&self.dir))
            .sum()
    }

    /// Makes and pins the maps and what user space runs itself, for the strongest level that
    /// the kernel allows, but none above `at_most`. The programs on hooks are loaded when
    /// they are to be attached. Nothing stays if it fails. Also returns why it is no
    /// stronger level. `log`: how much they tell.
    ///
    /// # Errors
    /// When not even disturbances can be noticed.
    pub fn load(&self, at_most: Level, log: LogLevel) -> Result<(Maps, Vec<Error>), Error> {
        prerequisites::lockdown()?;
        let (level, reason) = Self::strongest(at_most)?;
        let mut reasons: Vec<_> = reason.into_iter().collect();
        let maps = self
            .load_and_pin(level, log, &mut reasons)
            .or_else(|error| {
                self.unload()?;
                Err(error)
            })?;
        Ok((maps, reasons))
    }

    fn load_and_pin(
        &self,
        level: Level,
        log: LogLevel,
        reasons: &mut Vec<Error>,
    ) -> Result<Maps, Error> {
        let loader = Loader::new(&self.dir, log)?;
        symlink(log.name(), self.log_mark())
            .map_err(Error::failed(format!("link {}", self.log_mark().display())))?;
        let level = match level {
            Level::BestEffort if !self.is_permitted(&loader, reasons) => Level::Detect,
            level => level,
        };
        for name in [names::MEMBERS_ITER, names::ENROL_ITER] {
            load_iterator(name, &loader.code, &loader.facts, &self.dir)?;
        }
        let control = (loader.code).load(names::CONTROL, Attachment::BY_BPF, None)?;
        // The map may be new, and a reader there from before.
        reading::tell(&self.dir)?;
        let path = self.control(level);
        sys::pin(&control, &path).map_err(Error::failed(format!("pin {}", path.display())))?;
        Maps::open(level, &self.dir, &path)
    }

    /// Whether the kernel takes programs that modify what a function returns: one of them
    /// tells for all.
    fn is_permitted(&self, loader: &Loader, reasons: &mut Vec<Error>) -> bool {
        let level = Level::BestEffort;
        let mut refusing = programs::at(level).filter(|program| program.modifies_return(level));
        refusing.any(|program| {
            let loaded = loader.load(program, level, &self.dir);
            loaded.map_err(|error| reasons.push(error)).is_ok()
        })
    }

    /// Creates and pins the readers' maps if they are not there.
    pub(super) fn make_readers(&self) -> Result<(), Error> {
        if names::OF_READERS
            .iter()
            .all(|name| self.dir.join(name).exists())
        {
            return Ok(());
        }
        code::make_readers(&self.dir)
    }

    /// The directory of the pins.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Attaches what guards in these hierarchies need and is not attached. Returns what the
    /// kernel does not load or attach.
    ///
    /// # Errors
    /// When it is one that no guard goes without.
    pub fn attach(&self, hierarchies: Hierarchies) -> Result<Vec<Error>, Error> {
        let mut failed = self.load_those(|program| program.is_needed(hierarchies))?;
        failed.extend(self.attach_those(|program| program.is_needed(hierarchies))?);
        Ok(failed)
    }

    /// Attaches what notices checkpointers that nobody has guarded, and what is done to those
    /// where there are these hierarchies. Loads what guards there need beside it, so that
    /// each begins quickly. Returns what the kernel does not load or attach.
    ///
    /// # Errors
    /// When it is one that no guard goes without.
    pub fn watch(&self, there: Hierarchies) -> Result<Vec<Error>, Error> {
        let mut failed = self.load_those(|program| program.may_be_needed(there))?;
        failed.extend(
            self.attach_those(|program| program.watches() && program.may_be_needed(there))?,
        );
        Ok(failed)
    }

    /// Loads what guards may need where there are these hierarchies. Returns what the kernel
    /// does not load.
    ///
    /// # Errors
    /// When it is one that no guard goes without.
    pub fn load_for(&self, there: Hierarchies) -> Result<Vec<Error>, Error> {
        self.load_those(|program| !program.is_trigger() && program.may_be_needed(there))
    }

    /// Whether what [`Locked::watch`] attaches is attached.
    pub fn watches(&self) -> bool {
        PROGRAMS
            .iter()
            .filter(|program| program.is_trigger())
            .any(|program| program.link_pin(&self.dir).exists())
    }

    /// Attaches those that are loaded and not attached.
    fn attach_those(&self, needed: impl Fn(&Program) -> bool) -> Result<Vec<Error>, Error> {
        let Some(level) = self.level() else {
            return Ok(Vec::new());
        };
        let is_loaded = |program: &Program| program.program_pin(&self.dir).exists();
        let is_attached = |program: &Program| program.is_attached(&self.dir);
        let is_callable = |program: &Program| {
            is_loaded(program)
                && !program.is_never_called(&self.dir)
                && !program.is_not_attachable(&self.dir)
        };
        let all_moves = moves().all(is_callable);
        let missing: Vec<_> = programs::at(level)
            .filter(|program| needed(program))
            .filter(|program| is_callable(program) && !is_attached(program))
            .filter(|program| all_moves || !program.refuses_moves())
            .collect();
        let mut failed = Vec::new();
        for program in programs::at(level)
            .filter(|program| needed(program) && program.is_never_called(&self.dir))
        {
            match program.is_vital() {
                true => return Err(program.never_called(level)),
                false => failed.push(program.never_called(level)),
            }
        }
        if !missing.is_empty() {
            prerequisites::require_tracing()?;
        }
        // While one is attached, a guard may be in force.
        let is_counting = |program: &Program| program.is_vital() && is_attached(program);
        if !PROGRAMS.iter().any(is_counting) {
            self.forget_members()?;
        }
        for program in missing {
            match program.attach(&self.dir) {
                Err(error) if program.is_vital() && error.is(quirks::lacks_trampolines) => {
                    return Err(Error::NoTrampolines);
                }
                Err(error) if program.is_vital() => return Err(error),
                Err(error) if program.is_extra() && error.is(quirks::is_function_too_long) => {
                    failed.extend(program.keep_not_attachable(&self.dir).err());
                }
                result => failed.extend(result.err()),
            }
        }
        self.detach_incomplete_moves()?;
        Ok(failed)
    }

    /// Detaches the programs that refuse moves on v2 if one of them is not attached.
    pub(super) fn detach_incomplete_moves(&self) -> Result<(), Error> {
        match moves().all(|program| program.link_pin(&self.dir).exists()) {
            true => Ok(()),
            false => moves().try_for_each(|program| program.detach(&self.dir)),
        }
    }

    /// Removes the entries of threads that ended while no program was attached. The kernel reuses
    /// the addresses of their tasks.
    fn forget_members(&self) -> Result<(), Error> {
        let members = Table::<TaskPointer, GuardId>::open(&self.dir, names::MEMBERS)?;
        let left = members.entries()?;
        left.iter().try_for_each(|(task, _)| members.remove(task))
    }

    /// Loads those that are not loaded.
    fn load_those(&self, needed: impl Fn(&Program) -> bool) -> Result<Vec<Error>, Error> {
        let mut failed = Vec::new();
        let Some(level) = self.level() else {
            return Ok(failed);
        };
        let mut missing = programs::at(level)
            .filter(|program| needed(program) && !program.program_pin(&self.dir).exists())
            .peekable();
        if missing.peek().is_none() {
            return Ok(failed);
        }
        let loader = Loader::new(&self.dir, LogLevel::default())?;
        for program in missing {
            match loader.load(program, level, &self.dir) {
                Err(error) if program.is_vital() => return Err(error),
                result => failed.extend(result.err()),
            }
        }
        Ok(failed)
    }

    /// Detaches the programs that no guard in these hierarchies needs. With `watch` those stay that
    /// detect checkpointers. While function tracing is off this detaches nothing: see
    /// `prerequisites::is_tracing_off`.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_unneeded(&self, hierarchies: Hierarchies, watch: bool) -> Result<(), Error> {
        if prerequisites::is_tracing_off() {
            return Ok(());
        }
        // In reverse: what an entry has left is not found by a return that goes before it.
        PROGRAMS
            .iter()
            .rev()
            .filter(|program| !(program.is_needed(hierarchies) || watch && program.watches()))
            .try_for_each(|program| program.detach(&self.dir))
    }

    /// Every pin, of whatever version, but for the maps of those who follow the events.
    pub(super) fn pins(&self) -> Result<Vec<PathBuf>, Error> {
        let mut pins = fs::read_dir(&self.dir)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<io::Result<Vec<_>>>()
            })
            .map_err(Error::failed(format!("list the pins in {PIN_DIR}")))?;
        if reading::are_there() {
            let kept = names::OF_READERS.map(|name| self.dir.join(name));
            pins.retain(|path| !kept.contains(path));
        }
        Ok(pins)
    }
}

/// The programs that refuse moves on v2, and only together.
fn moves() -> impl Iterator<Item = &'static Program> {
    PROGRAMS.iter().filter(|program| program.refuses_moves())
}
