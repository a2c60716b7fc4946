//! `cargo xtask test`: unit tests here, integration tests in guests, one sum.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bpf_stats, build, config,
    config::{Cgroup, Image, Suite},
    dist, docs,
    kernel::{KERNELS, Kernel},
    report::Report,
    setup::{self, Needs},
    vm::Vm,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose names contain this
    name: Option<String>,
    /// Run all tests on this kernel, or on `all`: without it, all tests on two
    /// kernels and a part of them on the others
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Only these cgroup layouts: v1, v2 or hybrid
    #[arg(long, value_name = "LAYOUT")]
    cgroup: Vec<Cgroup>,
    /// Only these images: initramfs or systemd
    #[arg(long, value_name = "IMAGE")]
    image: Vec<Image>,
    /// Only this part in each guest: levels, service, engines,
    /// core or full
    #[arg(long, value_name = "SUITE")]
    suite: Option<Suite>,
    /// Write the tables of docs/ that are made from results; with `--kernel all`, and
    /// `doctor::tells` or `engines::` for a NAME
    #[arg(long)]
    docs: bool,
    /// Guests to run at the same time
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
}

/// A list of security modules without `bpf`.
pub(crate) const NO_BPF: &str = "lsm=lockdown,yama";
const PREEMPT_FULL: &str = "preempt=full";
const LOCKED_DOWN: &str = "lockdown=confidentiality";

/// A guest of the matrix.
struct Guest {
    kernel: &'static Kernel,
    cgroup: Cgroup,
    image: Image,
    boot: &'static [&'static str],
    /// What CI runs in it, if anything.
    in_ci: Option<Suite>,
    /// What is run in it when its kernel is asked for.
    in_all: Suite,
}

/// The guests that a release must pass in on this kernel.
fn guests(kernel: &'static Kernel) -> Vec<Guest> {
    let guest = |cgroup, image, boot, in_ci, in_all| Guest {
        kernel,
        cgroup,
        image,
        boot,
        in_ci,
        in_all,
    };
    let in_memory =
        |cgroup, boot, in_ci, in_all| guest(cgroup, Image::Initramfs, boot, in_ci, in_all);
    let mut guests = Vec::new();
    for cgroup in [Cgroup::V1, Cgroup::V2] {
        let in_ci = match kernel.all_tests == Some(cgroup) {
            true => Suite::Full,
            false => Suite::Core,
        };
        guests.push(in_memory(cgroup, &[], Some(in_ci), Suite::Full));
    }
    let is_newest = KERNELS.last().is_some_and(|last| last.name == kernel.name);
    for cgroup in kernel.userland.layouts.iter().copied() {
        let in_ci = match (kernel.all_tests, cgroup) {
            (Some(Cgroup::V1), Cgroup::Hybrid) => Some(Suite::Core),
            (Some(Cgroup::V2), Cgroup::V2) => Some(Suite::Service),
            // The newest, whose systemd has varlinkctl.
            (None, Cgroup::V2) if is_newest => Some(Suite::Service),
            _ => None,
        };
        guests.push(guest(cgroup, Image::Systemd, &[], in_ci, Suite::Full));
        if kernel.engines {
            guests.push(guest(cgroup, Image::Systemd, &[], None, Suite::Engines));
        }
    }
    guests.push(in_memory(Cgroup::Hybrid, &[], None, Suite::Full));
    guests.push(in_memory(Cgroup::V1, &[NO_BPF], None, Suite::Full));
    guests.push(in_memory(
        Cgroup::V2,
        &[NO_BPF],
        Some(Suite::Levels),
        Suite::Full,
    ));
    for cgroup in [Cgroup::V1, Cgroup::V2, Cgroup::Hybrid] {
        guests.push(in_memory(cgroup, &[PREEMPT_FULL], None, Suite::Full));
    }
    let leaks = &[NO_BPF, PREEMPT_FULL];
    let in_ci = kernel.all_tests.map(|_| Suite::Levels);
    guests.push(in_memory(Cgroup::V1, leaks, None, Suite::Levels));
    guests.push(in_memory(Cgroup::V2, leaks, in_ci, Suite::Levels));
    if kernel.all_tests == Some(Cgroup::V2) {
        guests.push(in_memory(
            Cgroup::V2,
            &[LOCKED_DOWN],
            Some(Suite::Levels),
            Suite::Levels,
        ));
    }
    guests
}

#[derive(Default)]
struct Sum {
    passed: usize,
    failed: usize,
    /// What libtest says of those that failed, to be said again at the end: a log of
    /// many guests is long, and is often kept by its end alone.
    failures: Vec<String>,
    in_failures: bool,
}

impl Sum {
    /// Adds a failure that is no test's.
    fn add_failure(&mut self, complaint: String) {
        self.failed += 1;
        self.failures.push(complaint);
    }

    /// Adds what another counted, of which `label` tells where.
    fn add(&mut self, other: Self, label: &str) {
        self.passed += other.passed;
        self.failed += other.failed;
        let failures = other.failures.into_iter();
        self.failures
            .extend(failures.map(|line| format!("{label}: {line}")));
    }

    /// Adds what a line of libtest says; `true` for a `test result:` line.
    fn add_line(&mut self, line: &str) -> bool {
        let Some((_, result)) = line.split_once("test result: ") else {
            self.in_failures |= line.trim_end() == "failures:";
            if self.in_failures && !line.trim().is_empty() {
                self.failures.push(line.to_owned());
            }
            return false;
        };
        self.in_failures = false;
        let count = |word: &str| {
            let mut words = result
                .split([' ', ';', '.'])
                .filter(|part| !part.is_empty());
            let mut last = "";
            let found = words.find_map(|part| {
                let number = (part == word).then(|| last.parse().ok()).flatten();
                last = part;
                number
            });
            found.unwrap_or(0)
        };
        self.passed += count("passed");
        self.failed += count("failed");
        true
    }
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let guests = args.guests()?;
    let needs = Needs::guests(guests.iter().map(|(guest, _)| (guest.kernel, guest.image)));
    setup::setup(&needs)?;
    ensure!(
        !args.docs || (args.kernel == ["all"] && args.cgroup.is_empty() && args.image.is_empty()),
        "--docs goes with --kernel all alone: the tables are about all guests"
    );
    ensure!(
        !guests.is_empty(),
        "no guest of the matrix has this kernel, layout and image"
    );
    let mut sum = Sum::default();
    sum.add(unit_tests(args.name.as_deref())?, "host");
    let mut outcomes = in_guests(args, &guests)?;
    for outcome in &mut outcomes {
        sum.add(std::mem::take(&mut outcome.sum), &outcome.label);
    }
    if args.docs {
        ensure!(
            sum.failed == 0,
            "nothing is written from tests that have failed: {:#?}",
            sum.failures
        );
        docs::write(&outcomes)?;
    }
    let mut complaints = docs::compare(&outcomes)?;
    for (outcome, (guest, _)) in outcomes.iter().zip(&guests) {
        if let Some(report) = &outcome.report {
            complaints.extend(bpf_stats::compare(
                guest.kernel,
                guest.boot,
                &report.programs,
            )?);
        }
    }
    for complaint in complaints {
        sum.add_failure(complaint);
    }
    if let Some(name) = args
        .name
        .as_deref()
        .filter(|_| sum.passed + sum.failed == 0)
    {
        anyhow::bail!("no test has a name that contains {name}");
    }
    for line in &sum.failures {
        println!("FAILED: {line}");
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Args {
    /// The guests that are asked for, and what to run in each.
    fn guests(&self) -> Result<Vec<(Guest, Suite)>> {
        let kernels = match self.kernel.is_empty() {
            true => KERNELS.iter().collect(),
            false => Kernel::chosen(&self.kernel)?,
        };
        let mut wanted: Vec<_> = kernels
            .into_iter()
            .flat_map(guests)
            .filter(|guest| self.cgroup.is_empty() || self.cgroup.contains(&guest.cgroup))
            .filter(|guest| self.image.is_empty() || self.image.contains(&guest.image))
            .filter(|guest| !self.docs || guest.is_for_docs())
            .filter_map(|guest| {
                let suite = match self.suite {
                    Some(asked) => asked,
                    None if self.kernel.is_empty() => guest.in_ci?,
                    None => guest.in_all,
                };
                guest.has(suite).then_some((guest, suite))
            })
            .collect();
        // What takes longest comes first: then the last ones end together.
        wanted.sort_by_key(|(_, suite)| match suite {
            Suite::Full => 0,
            Suite::Engines => 1,
            Suite::Core | Suite::Service => 2,
            Suite::Levels => 3,
        });
        Ok(wanted)
    }
}

fn unit_tests(name: Option<&str>) -> Result<Sum> {
    let mut cargo = build::cargo();
    cargo
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .args(name);
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .context("run cargo test")?;
    let mut sum = Sum::default();
    for line in BufReader::new(child.stdout.take().context("its output is a pipe")?).lines() {
        let line = line?;
        sum.add_line(&line);
        println!("host: {line}");
    }
    if !child.wait()?.success() && sum.failed == 0 {
        sum.add_failure("cargo test failed".to_owned());
    }
    Ok(sum)
}

/// What came of the tests in one guest.
pub(crate) struct Outcome {
    pub(crate) kernel: &'static str,
    /// Its boot parameters.
    pub(crate) boot: String,
    label: String,
    sum: Sum,
    /// What `doctor` said in it.
    pub(crate) report: Option<Report>,
    /// What its tests said for tables.
    pub(crate) rows: Vec<docs::Row>,
}

impl Outcome {
    /// Its place in tables: kernels from the oldest on, the plain boot first.
    pub(crate) fn order(&self) -> (usize, String) {
        let place = KERNELS.iter().position(|kernel| kernel.name == self.kernel);
        (place.unwrap_or(usize::MAX), self.boot.clone())
    }
}

/// In the order of the guests.
fn in_guests(args: &Args, guests: &[(Guest, Suite)]) -> Result<Vec<Outcome>> {
    let programs = build::guest_programs()?;
    let systemd = |(guest, _): &(Guest, Suite)| guest.image == Image::Systemd;
    let package = match guests.iter().any(systemd) {
        true => Some(dist::package_for_guests()?),
        false => None,
    };
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((guest, suite)) = guests.get(number) else {
                break;
            };
            let mut kept = String::new();
            let outcome = guest.test(
                *suite,
                args.name.as_deref(),
                &programs,
                package.as_deref(),
                |line| {
                    if args.jobs > 1 {
                        kept += line;
                        kept.push('\n');
                    } else {
                        println!("{line}");
                    }
                },
            );
            print!("{kept}");
            outcomes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(number, outcome);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| ()))
    })
    .map_err(|()| anyhow::anyhow!("a thread that runs a guest has panicked"))?;
    let outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(outcomes.into_values().collect())
}

impl Guest {
    /// Whether there is anything of this suite in it.
    fn has(&self, suite: Suite) -> bool {
        let engines = self.in_all == Suite::Engines;
        engines == (suite == Suite::Engines)
            && (suite != Suite::Service || self.image == Image::Systemd)
    }

    /// Whether tables are made from it: each boot once, and engines. Every other run
    /// compares the rest.
    fn is_for_docs(&self) -> bool {
        (self.cgroup, self.image) == (Cgroup::V2, Image::Initramfs) || self.in_all == Suite::Engines
    }

    /// Runs the integration tests; a guest without a result counts as one failure.
    fn test(
        &self,
        suite: Suite,
        name: Option<&str>,
        programs: &[PathBuf],
        package: Option<&Path>,
        mut show: impl FnMut(&str),
    ) -> Outcome {
        let mut command = vec!["integration".to_owned()];
        command.extend(name.map(str::to_owned));
        let mut vm = Vm::new(self.kernel.name, self.cgroup, self.image, command);
        vm.config.suite = suite;
        vm.config.boot = self.boot.iter().map(|&word| word.to_owned()).collect();
        if self.image == Image::Systemd {
            let package = package.map(|path| (path.to_owned(), config::PACKAGE_PATH.to_owned()));
            vm.copies.extend(package);
        }
        let label = vm.config.label();
        let mut sum = Sum::default();
        let mut has_result = false;
        let mut last = String::new();
        let mut report = None;
        let mut rows = Vec::new();
        let ended = vm.boot(programs, |line| {
            has_result |= sum.add_line(line);
            if line.starts_with("test ") {
                line.clone_into(&mut last);
            }
            rows.extend(docs::Row::in_line(line));
            match Report::in_line(line) {
                Some(said) => report = report.take().or(Some(said)),
                None => show(&format!("{label}: {line}")),
            }
        });
        let complaint = match ended {
            Err(error) => Some(format!("{error:#}; the last test was: {last}")),
            Ok(code) if !has_result => Some(format!(
                "ended with {code} and without a result; the last test was: {last}"
            )),
            Ok(code) if code != 0 && sum.failed == 0 => Some(format!("ended with {code}")),
            Ok(_) => None,
        };
        if let Some(complaint) = complaint {
            show(&format!("{label}: FAILED: {complaint}"));
            sum.add_failure(complaint);
        }
        Outcome {
            kernel: self.kernel.name,
            boot: self.boot.join(" "),
            label,
            sum,
            report,
            rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sum;

    #[test]
    fn sums_up_result_lines() {
        let mut sum = Sum::default();
        assert!(!sum.add_line("test v1::dump::thawed ... ok"));
        assert!(sum.add_line("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured"));
        assert!(sum.add_line("test result: FAILED. 12 passed; 2 failed; 0 ignored"));
        assert_eq!((sum.passed, sum.failed), (15, 2));
    }

    #[test]
    fn keeps_what_is_said_of_failures() {
        let mut guest = Sum::default();
        let failures = ["failures:", "", "---- thawed ----", "left: 1"];
        for line in ["test thawed ... FAILED"].iter().chain(&failures) {
            guest.add_line(line);
        }
        assert!(guest.add_line("test result: FAILED. 0 passed; 1 failed"));
        guest.add_line("[    4.2] reboot: Power down");
        let mut sum = Sum::default();
        sum.add(guest, "6.1");
        assert_eq!(sum.failed, 1);
        assert_eq!(
            sum.failures,
            ["6.1: failures:", "6.1: ---- thawed ----", "6.1: left: 1"]
        );
    }
}
