//! A real guard, tried out: a cgroup of its own, a write that must not work, the
//! end.

use std::{io, path::Path, sync::mpsc, thread, time::Duration};

use freezer_guard_abi::{Level, Protection};

use super::Check;
use crate::{
    cgroup::{self, Cgroup, CreatedCgroups, Version},
    guard::{self, Error, Guard, Preparation, Requirements, Shortfall, chain},
    kernel::{Hierarchies, Levels, Locked, ProgramReport},
};

/// How long an empty cgroup may take to freeze.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Default)]
pub(super) struct Live {
    pub(super) checks: Vec<Check>,
    /// The weakest that each protection was; `None`: there was no guard.
    pub(super) levels: Option<Levels>,
    pub(super) programs: Vec<ProgramReport>,
}

/// Tries it in each hierarchy.
pub(super) fn test() -> Live {
    let mut live = Live::default();
    for (name, mount) in [
        ("guard on v1", cgroup::freezer_mount()),
        ("guard on v2", cgroup::unified_mount()),
    ] {
        if let Ok(Some(mount)) = mount {
            live.test_below(name, &mount);
        }
    }
    live
}

impl Live {
    fn test_below(&mut self, name: &'static str, mount: &Path) {
        let path = mount.join(format!("freezer-guard-doctor-{}", std::process::id()));
        let mut made = CreatedCgroups::default();
        if let Err(error) = made.make(&path) {
            self.checks.push(Check::unusable(
                name,
                format!("no cgroup can be made: {}", chain(&error)),
                "run it as root, on the host",
            ));
            return;
        }
        let check = self
            .disturb(name, &path)
            .unwrap_or_else(|error| Check::unusable(name, chain(&error), "see the checks above"));
        self.checks.push(check);
    }

    /// Begins a guard, has a thread that does not belong to the holder write to
    /// the freezer, and ends the guard.
    fn disturb(&mut self, name: &'static str, path: &Path) -> Result<Check, Error> {
        let cgroup = Cgroup::open(path)?;
        let outside = Cgroup::open(path)?;
        let (ask, asked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        // There before the guard, and so no part of it.
        let outsider = thread::spawn(move || {
            for () in asked {
                if tell.send(outside.thaw()).is_err() {
                    break;
                }
            }
        });
        let answer = || {
            // The thread lives as long as `ask`.
            let _ = ask.send(());
            told.recv().unwrap_or_else(|_| {
                Err(cgroup::Error::Io {
                    operation: "ask",
                    path: path.to_owned(),
                    source: io::Error::other("the thread has ended"),
                })
            })
        };
        let wanted = Requirements {
            allowed: Vec::new(),
            require: None,
            at_most: Level::Enforce,
            owner: None,
        };
        let held = match guard::is_any_in_force()? {
            true => Locked::wait()?.level(),
            false => None,
        };
        let hierarchies = Hierarchies {
            v1: cgroup.version() == Version::V1,
            v2: cgroup.version() == Version::V2,
        };
        let mut guard = Guard::begin(vec![vec![cgroup]], &wanted)?;
        let how = Preparation {
            freeze: true,
            timeout: PATIENCE,
            root: None,
        };
        guard.prepare(&how, |_| Ok::<_, Error>(()))?;
        let written = answer();
        let levels = guard.levels();
        let reasons: Vec<_> = guard
            .weak_because()
            .iter()
            .map(|error| chain(error))
            .collect();
        self.take(levels, Locked::wait()?.programs(hierarchies));
        let status = guard.end()?;
        let after = answer();
        drop(ask);
        // It has nothing to say.
        let _ = outsider.join();
        let counted = status.map_or(0, |status| status.violation_count());
        let refused = matches!(
            &written,
            Err(cgroup::Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY)
        );
        let level = levels[Protection::Freeze as usize];
        let finding = match (refused, counted, &after) {
            (_, _, Err(error)) => {
                return Ok(Check::unusable(
                    name,
                    format!("after the guard it fails to {}", chain(error)),
                    "please report it",
                ));
            }
            (true, 0, _) => "a write by another was refused (EBUSY), and works after the end",
            // At `best-effort` that is what may happen.
            (false, 1.., _) if level != Some(Level::Enforce) => {
                "a write by another went through and was noticed"
            }
            _ => {
                return Ok(Check::unusable(
                    name,
                    format!("a write by another: {written:?}; {counted} violations counted"),
                    "please report it",
                ));
            }
        };
        let weakest = levels.into_iter().min().flatten();
        let text = format!("{}: {finding}", describe(levels));
        Ok(match weakest {
            Some(Level::Enforce) => Check::good(name, text),
            None => Check::limited(
                name,
                format!("{text} ({})", reasons.join("; ")),
                "lift what is missing with --allow",
            ),
            Some(_) => Check::limited(
                name,
                text,
                match held {
                    // What is loaded is what somebody else wanted.
                    Some(held) => format!(
                        "guards are held at the level {}: see the checks above, or ask again when they have ended",
                        held.name()
                    ),
                    None => reasons.join("; "),
                },
            ),
        })
    }

    /// Keeps the weaker of what there was and what there is.
    fn take(&mut self, levels: Levels, programs: Vec<ProgramReport>) {
        let mut weakest = self.levels.unwrap_or(levels);
        for (weakest, level) in weakest.iter_mut().zip(levels) {
            *weakest = (*weakest).min(level);
        }
        self.levels = Some(weakest);
        for program in programs {
            match self
                .programs
                .iter_mut()
                .find(|known| known.name == program.name)
            {
                Some(known) => known.attached |= program.attached,
                None => self.programs.push(program),
            }
        }
    }
}

/// `enforce`, or each protection's when they differ.
fn describe(levels: Levels) -> String {
    if levels.iter().all(|level| *level == levels[0]) {
        return Level::name_of(levels[0]).to_owned();
    }
    let each: Vec<_> = Protection::ALL
        .into_iter()
        .zip(levels)
        .map(|(protection, level)| Shortfall { protection, level }.to_string())
        .collect();
    each.join(", ")
}
