//! A real guard, tried out: a cgroup of its own, a write that must not work, the
//! end.

use std::{io, path::Path, sync::mpsc, thread, time::Duration};

use freezer_guard_abi::{Level, Protection};

use super::{
    Check,
    trial::{self, Reason, Trial},
};
use crate::{
    cgroup::{self, Cgroup, CreatedCgroups},
    guard::{
        self, Error, Guard, Preparation, Requirements, Shortfall, Status, chain, is_never_called,
    },
    kernel::{self, Levels, Locked, ProgramReport},
};

/// How long an empty cgroup may take to freeze.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Default)]
pub(super) struct Live {
    pub(super) checks: Vec<Check>,
    /// The weakest that each protection was; `None`: there was no guard.
    pub(super) levels: Option<Levels>,
    pub(super) programs: Vec<ProgramReport>,
    pub(super) trials: Vec<Trial>,
}

/// Tries it in each hierarchy.
///
/// `earlier_checks_pass`: no earlier check has found a reason why no guard can begin.
pub(super) fn test(earlier_checks_pass: bool) -> Live {
    let mut live = Live::default();
    for (name, hierarchy, mount) in [
        ("guard on v1", "v1", cgroup::freezer_mount()),
        ("guard on v2", "v2", cgroup::unified_mount()),
    ] {
        if let Ok(Some(mount)) = mount {
            live.test_below(name, hierarchy, &mount, earlier_checks_pass);
        }
    }
    live
}

/// Returns the remedy for a guard that did not begin.
fn remedy(error: &Error, earlier_checks_pass: bool) -> &'static str {
    use kernel::Error::{
        Failed, Load, NeverCalled, NoHook, NoTrampolines, TracingBroken, TracingOff,
    };
    match error.kernel_errors()[..] {
        [NoTrampolines] => "use a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
        [TracingOff] => "sysctl kernel.ftrace_enabled=1",
        [TracingBroken] => "restart the host",
        [Failed { .. } | Load { .. } | NeverCalled { .. } | NoHook { .. }]
            if earlier_checks_pass =>
        {
            "please report it, with the file that `freezer-guard doctor --bundle FILE` writes"
        }
        _ if earlier_checks_pass => "do as the finding says, and run doctor again",
        _ => "see the checks above",
    }
}

impl Live {
    fn test_below(
        &mut self,
        name: &'static str,
        hierarchy: &'static str,
        mount: &Path,
        earlier_checks_pass: bool,
    ) {
        let path = mount.join(format!("freezer-guard-doctor-{}", std::process::id()));
        let mut made = CreatedCgroups::default();
        if let Err(error) = made.make(&path) {
            let finding = format!("cannot make a cgroup for the trial: {}", chain(&error));
            let check = Check::unusable(name, finding, "run doctor as root, on the host");
            self.checks.push(check.private());
            return;
        }
        let (check, trial) = match self.disturb(name, hierarchy, &path) {
            Ok(found) => found,
            Err(error) => {
                let check =
                    Check::unusable(name, chain(&error), remedy(&error, earlier_checks_pass));
                let check = match trial::public(&error) {
                    Some(_) => check,
                    None => check.private(),
                };
                (check, Trial::failed(hierarchy, &error))
            }
        };
        self.checks.push(check);
        self.trials.push(trial);
    }

    /// Guards a cgroup, has a thread outside of the guard write the freezer during the guard
    /// and after it, and judges what came of that.
    fn disturb(
        &mut self,
        name: &'static str,
        hierarchy: &'static str,
        path: &Path,
    ) -> Result<(Check, Trial), Error> {
        let cgroup = Cgroup::open(path)?;
        // There before the guard, and so no part of it.
        let outsider = Outsider::of(Cgroup::open(path)?);
        let wanted = Requirements {
            allowed: Vec::new(),
            require: None,
            at_most: Level::Enforce,
            owner: None,
        };
        Locked::wait()?.forget_results()?;
        let held = match guard::is_any_in_force()? {
            true => Locked::wait()?.level(),
            false => None,
        };
        let mut guard = Guard::begin(vec![vec![cgroup]], &wanted)?;
        let loaded = Locked::wait()?.level();
        let programs = guard.try_programs();
        let how = Preparation {
            freeze: true,
            timeout: TIMEOUT,
            roots: Vec::new(),
        };
        guard.prepare(&how, |_| Ok::<_, Error>(()))?;
        let during = outsider.disturb(path);
        let levels = guard.levels();
        let weak_because = guard.weak_because();
        let texts: Vec<_> = weak_because.iter().map(|error| chain(error)).collect();
        let reasons = weak_because.iter().map(Reason::of).collect();
        let status = guard.end()?;
        self.take(levels, programs?);
        let attempt = Attempt {
            during,
            after: outsider.disturb(path),
            counted: status.as_ref().map_or(0, Status::violation_count),
            levels,
        };
        let check = match attempt.finding() {
            Ok(finding) => limited_by_level(name, levels, finding, held, &texts.join("; ")),
            Err(fault) => Check::unusable(name, fault, "please report it").private(),
        };
        let names = trial::named(levels).into_iter();
        let trial = Trial {
            hierarchy: hierarchy.to_owned(),
            loaded: loaded.map(|level| level.name().to_owned()),
            held: held.is_some(),
            levels: Some(names.map(|(one, of)| (one.into(), of.into())).collect()),
            refused: Some(attempt.is_refused()),
            permitted_afterwards: Some(attempt.after.is_ok()),
            violations: Some(attempt.counted),
            proven: status.map(|status| !status.unproven),
            reasons,
        };
        Ok((check, trial))
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
                Some(known) => {
                    known.attached |= program.attached;
                    known.calls = known.calls.max(program.calls);
                }
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

/// A thread that disturbs a cgroup when asked to.
struct Outsider {
    ask: mpsc::Sender<()>,
    told: mpsc::Receiver<Disturbed>,
}

/// The result of a thaw.
type Disturbed = Result<(), cgroup::Error>;

impl Outsider {
    fn of(cgroup: Cgroup) -> Self {
        let (ask, asked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        // It ends when `ask` is dropped.
        thread::spawn(move || {
            for () in asked {
                if tell.send(cgroup.thaw()).is_err() {
                    break;
                }
            }
        });
        Self { ask, told }
    }

    fn disturb(&self, path: &Path) -> Disturbed {
        // The thread lives as long as `ask`.
        let _ = self.ask.send(());
        self.told.recv().unwrap_or_else(|_| {
            let ended = cgroup::Error::Io {
                operation: "ask",
                path: path.to_owned(),
                source: io::Error::other("the thread has ended"),
            };
            Err(ended)
        })
    }
}

/// The writes of an outsider during a guard and after it, and what the guard has counted.
struct Attempt {
    during: Result<(), cgroup::Error>,
    after: Result<(), cgroup::Error>,
    counted: u64,
    levels: Levels,
}

impl Attempt {
    /// Returns whether the guard refused the write.
    fn is_refused(&self) -> bool {
        matches!(
            &self.during,
            Err(cgroup::Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY)
        )
    }

    /// Returns what the guard did, or as an error what it should not have done.
    fn finding(&self) -> Result<&'static str, String> {
        if let Err(error) = &self.after {
            return Err(format!(
                "after the end of the guard, another process fails to {}",
                chain(error)
            ));
        }
        let level = self.levels[Protection::Freeze as usize];
        match (self.is_refused(), self.counted) {
            (true, 0) => Ok(
                "the guard refuses a write by another process (EBUSY), and permits it after its end",
            ),
            // At `best-effort` that is what may happen.
            (_, 1..) if level != Some(Level::Enforce) => {
                Ok("a write by another process went through, and the guard detected it")
            }
            (false, 0) if level.is_none() => {
                Ok("a write by another process went through, and the guard did not detect it")
            }
            _ => Err(format!(
                "a write by another process: {:?}; the guard counted {} violations",
                self.during, self.counted
            )),
        }
    }
}

/// Judges what works by how far it goes. `held`: the level of guards in force, which is no
/// matter of this host.
fn limited_by_level(
    name: &'static str,
    levels: Levels,
    finding: &str,
    held: Option<Level>,
    reasons: &str,
) -> Check {
    let text = format!("{}: {finding}", describe(levels));
    match (levels.into_iter().min().flatten(), held) {
        (Some(Level::Enforce), _) => Check::good(name, text),
        (None, _) => Check::limited(
            name,
            format!("{text} ({reasons})"),
            "lift the missing protections with --allow",
        ),
        (Some(_), Some(held)) => Check::limited(
            name,
            text,
            format!(
                "guards are held at the level {}: see the checks above, or run doctor again after their end",
                held.name()
            ),
        ),
        (Some(_), None) => Check::limited(name, text, reasons.to_owned()),
    }
}

/// Complains of programs that the kernel never calls, if there are any.
pub(super) fn check(programs: &[ProgramReport]) -> Option<Check> {
    let never: Vec<_> = programs
        .iter()
        .filter(|program| is_never_called(program))
        .map(|program| format!("{} ({})", program.name, program.hook))
        .collect();
    (!never.is_empty()).then(|| {
        Check::limited(
            "programs",
            format!("the kernel never calls {}", never.join(", ")),
            "do not rely on the protections of these programs, and please report it",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::remedy;
    use crate::{guard::Error, kernel};

    #[test]
    fn only_a_failed_check_is_a_remedy_above() {
        let above = "see the checks above";
        for error in [
            Error::PidNamespace,
            kernel::Error::NotAttached("task_kill").into(),
        ] {
            assert_eq!(remedy(&error, false), above);
            assert_ne!(remedy(&error, true), above);
        }
        let tracing_off = kernel::Error::TracingOff.into();
        assert!(remedy(&tracing_off, true).contains("ftrace_enabled"));
        assert!(remedy(&tracing_off, false).contains("ftrace_enabled"));
    }
}
