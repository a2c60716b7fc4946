//! `cargo xtask test`: unit tests here, integration tests in guests, one sum.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{ExitCode, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bpf_stats,
    build::{self, Profile, Programs},
    config,
    config::{Cgroup, Image, Suite},
    dist, docs, git,
    history::History,
    kernel::{KERNELS, Kernel},
    lint,
    machine::{self, AMD64, Machine},
    matrix::{self, Guest},
    outcome::{Outcome, Reading, Sum},
    release::{self, Passed, Release},
    schedule::{left_seconds, longest_first},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only tests with this text in their name, such as `v2::dump::`
    name: Option<String>,
    /// Run all tests on this kernel, or on `all` kernels, as a release does. The default is a
    /// choice of guests that differ in the most important points
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Boot only guests of this machine: for arm64 the suite core on 6.12 and 7.3, or with --kernel the
    /// suites of a release
    #[arg(long, value_parser = machine::names())]
    arch: Option<String>,
    /// Boot only guests with this cgroup layout: v1, v2 or hybrid
    #[arg(long, value_name = "LAYOUT")]
    cgroup: Vec<Cgroup>,
    /// Boot only guests with this root file system: initramfs or systemd
    #[arg(long, value_name = "IMAGE")]
    image: Vec<Image>,
    /// Run only this suite: levels, refused, service, short, engines, mixed, core, full or soak
    #[arg(long, value_name = "SUITE")]
    suite: Option<Suite>,
    /// Skip guests of a release that have passed with the present sources, and write the results into
    /// docs/data/release.md
    #[arg(long, requires = "kernel", conflicts_with_all = ["name", "lint"])]
    resume: bool,
    /// Write the rows of each guest that passes into the tables of docs/. Rows of other guests and tests
    /// stay
    #[arg(long)]
    docs: bool,
    /// Also run the lints and build docs/, while guests run. A complaint counts as a failure
    #[arg(long)]
    lint: bool,
    /// Run this many guests at the same time
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
}

/// How many of the slowest tests are shown.
const SLOWEST: usize = 20;

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let guests = args.guests()?;
    ensure!(
        !guests.is_empty(),
        "no guest has this kernel, cgroup layout, image and suite together"
    );
    let mut sum = Sum::default();
    let release = args.resume.then(Release::open).transpose()?;
    let guests = match &release {
        Some(release) => skip(guests, release, &mut sum),
        None => guests,
    };
    let mut needs = matrix::needs(&guests);
    if args.lint {
        needs = needs.with_book().with_release();
    }
    let programs = setup::guest_programs(&needs, |machine| args.profile(machine))?;
    let run = Run::new(args, guests, programs, release, sum)?;
    run.everything()?;
    run.conclude()
}

impl Args {
    /// Returns how programs for this machine are compiled: as they ship. For another machine than this,
    /// a change gets a build that takes half the time.
    fn profile(&self, machine: &Machine) -> Profile {
        match machine.is_foreign() && self.kernel.is_empty() {
            true => Profile::Dev,
            false => Profile::Release,
        }
    }

    /// The guests that are asked for.
    fn guests(&self) -> Result<Vec<Guest>> {
        let kernels = match self.kernel.is_empty() {
            true => KERNELS.iter().collect(),
            false => Kernel::chosen(&self.kernel)?,
        };
        let is_amd64 = self.arch.as_ref().is_none_or(|name| name == AMD64.name);
        let guests = match self.suite {
            Some(suite) => matrix::with_suite(&kernels, suite),
            None if !self.kernel.is_empty() => matrix::release(&kernels),
            None if is_amd64 => matrix::change(),
            None => matrix::with_suite(&kernels, Suite::Core),
        };
        let wanted = guests.into_iter().filter(|guest| {
            let arch = guest.kernel.machine().name;
            self.arch.as_ref().is_none_or(|name| name == arch)
                && (self.cgroup.is_empty() || self.cgroup.contains(&guest.cgroup))
                && (self.image.is_empty() || self.image.contains(&guest.image))
                && (!self.docs || guest.is_for_docs())
        });
        Ok(wanted.collect())
    }
}

/// Removes the guests that have passed and adds up their tests, and removes those that a release does
/// without.
fn skip(guests: Vec<Guest>, release: &Release, sum: &mut Sum) -> Vec<Guest> {
    let of_release = release::labels();
    let is_left = |guest: &Guest| {
        let label = guest.label();
        if !of_release.contains(&label) {
            return false;
        }
        let Some(Passed { tests, .. }) = release.passed(&label) else {
            return true;
        };
        println!("{label}: skipped, {tests} tests have passed with these sources");
        sum.passed += tests;
        false
    };
    guests.into_iter().filter(is_left).collect()
}

/// A task for a thread: the tests of the host, or one guest.
enum Job {
    Host,
    Guest(Guest),
}

/// One run of tests, by several threads.
struct Run {
    name: Option<String>,
    lints: bool,
    docs: bool,
    threads: usize,
    jobs: Vec<Job>,
    /// The next of the jobs.
    next: AtomicUsize,
    programs: Programs,
    /// The Debian package and the container image of each machine, once a guest needs them.
    packages: Mutex<HashMap<&'static str, [PathBuf; 2]>>,
    history: History,
    release: Option<Release>,
    /// The guests to come: label, and seconds they may take.
    left: Mutex<Vec<(String, u64)>>,
    results: Mutex<(Sum, Vec<Outcome>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    fn new(
        args: &Args,
        guests: Vec<Guest>,
        programs: Programs,
        release: Option<Release>,
        sum: Sum,
    ) -> Result<Self> {
        let history = History::open()?;
        let seconds = |guest: &Guest| {
            let before = history.seconds(&guest.label());
            before.unwrap_or_else(|| guest.usual_seconds())
        };
        let mut guests: Vec<_> = guests
            .into_iter()
            .map(|guest| (seconds(&guest), guest))
            .collect();
        longest_first(&mut guests);
        let left = guests
            .iter()
            .map(|(seconds, guest)| (guest.label(), *seconds));
        let left = Mutex::new(left.collect());
        let mut jobs: Vec<_> = guests
            .into_iter()
            .map(|(_, guest)| Job::Guest(guest))
            .collect();
        // The host takes the second thread, while the longest guest has the first.
        jobs.insert(jobs.len().min(1), Job::Host);
        Ok(Self {
            name: args.name.clone(),
            lints: args.lint,
            docs: args.docs,
            threads: args.jobs.max(1),
            jobs,
            next: AtomicUsize::new(0),
            programs,
            packages: Mutex::default(),
            history,
            release,
            left,
            results: Mutex::new((sum, Vec::new())),
        })
    }

    fn everything(&self) -> Result<()> {
        let changed = if git::sources().is_err() {
            ", and changes"
        } else {
            ""
        };
        println!("testing commit {}{changed}", git::commit());
        for (label, _) in lock(&self.left).iter() {
            println!("to test: {label}");
        }
        self.print_left();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|_| scope.spawn(|| self.work()))
                .collect();
            // All of them, before the first error counts.
            let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            ends.into_iter()
                .try_for_each(|end| end.map_err(|_| anyhow::anyhow!("a thread has panicked"))?)
        })
    }

    /// Takes one job after the other.
    fn work(&self) -> Result<()> {
        while let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            match job {
                Job::Host => {
                    let mut here = unit_tests(self.name.as_deref())?;
                    let lints = self.lints.then(lint::failures).unwrap_or_default();
                    lints.into_iter().for_each(|lint| here.add_failure(lint));
                    lock(&self.results).0.add(here, "host");
                }
                Job::Guest(guest) => self.in_guest(guest)?,
            }
        }
        Ok(())
    }

    /// Runs a guest, shows its output and stores its result.
    fn in_guest(&self, guest: &Guest) -> Result<()> {
        let label = guest.label();
        println!("{label}: boots");
        let mut kept = String::new();
        let mut outcome = self.test(guest, |line| {
            if self.threads > 1 {
                kept += &format!("{label}: {line}\n");
            } else {
                println!("{label}: {line}");
            }
        });
        print!("{kept}");
        compare(&mut outcome, self.docs)?;
        let (sum, seconds) = (&outcome.sum, outcome.took.as_secs());
        for failure in &sum.failures {
            println!("{label}: FAILED: {failure}");
        }
        println!(
            "{label}: {} passed, {} failed, in {seconds} s",
            sum.passed, sum.failed
        );
        if self.name.is_none() {
            self.history.add(&label, seconds)?;
        }
        // One guest at a time writes into docs/.
        let mut results = lock(&self.results);
        if sum.failed == 0 && sum.passed > 0 {
            if self.docs {
                docs::write(&outcome)?;
            }
            if let Some(release) = &self.release {
                let tests = sum.passed;
                release.add(&label, Passed { tests, seconds })?;
            }
        } else if self.docs {
            println!("{label}: its rows in docs/ stay as they are, as tests failed");
        }
        lock(&self.left).retain(|(left, _)| *left != label);
        self.print_left();
        results.0.add(std::mem::take(&mut outcome.sum), &label);
        results.1.push(outcome);
        Ok(())
    }

    fn test(&self, guest: &Guest, mut show: impl FnMut(&str)) -> Outcome {
        let mut command = vec!["integration".to_owned()];
        command.extend(self.name.clone());
        let mut vm = guest.vm(command);
        if guest.image == Image::Systemd {
            match self.packages(guest.kernel.machine()) {
                Ok(paths) => {
                    let inside = [config::PACKAGE_PATH, config::CONTAINER_IMAGE_PATH];
                    vm.copies
                        .extend(paths.into_iter().zip(inside.map(str::to_owned)));
                }
                Err(error) => return Reading::of(guest).end(Err(error)),
            }
        }
        let mut reading = Reading::of(guest);
        let ended = vm.boot(&self.programs, |line| {
            if reading.add_line(line) {
                show(line);
            }
        });
        reading.end(ended)
    }

    /// Returns the packages. The first guest that needs them makes them.
    fn packages(&self, machine: &'static Machine) -> Result<[PathBuf; 2]> {
        let mut packages = lock(&self.packages);
        if let Some(paths) = packages.get(machine.name) {
            return Ok(paths.clone());
        }
        let paths = dist::packages_for_guests(machine)?;
        packages.insert(machine.name, paths.clone());
        Ok(paths)
    }

    /// Shows how many guests are to come, and about how long they take.
    fn print_left(&self) {
        let left = lock(&self.left);
        let seconds = left_seconds(left.iter().map(|(_, seconds)| *seconds), self.threads);
        let minutes = seconds.div_ceil(60);
        println!("guests left: {}, for about {minutes} min", left.len());
    }

    /// Shows times and the sum.
    fn conclude(self) -> Result<ExitCode> {
        let results = self.results.into_inner();
        let (sum, outcomes) = results.unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = self.name
            && sum.passed + sum.failed == 0
        {
            anyhow::bail!("no test has {name} in its name");
        }
        print_times(&outcomes);
        for line in &sum.failures {
            println!("FAILED: {line}");
        }
        println!("{} passed, {} failed", sum.passed, sum.failed);
        Ok(match sum.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

/// Compares rows and programs of a guest with the repository: differences are failures, but
/// not of rows that this run writes.
fn compare(outcome: &mut Outcome, docs: bool) -> Result<()> {
    let rows = (!docs).then(|| docs::compare(outcome)).transpose()?;
    let mut complaints = rows.unwrap_or_default();
    if let Some(report) = &outcome.report
        && outcome.guest.kernel.is_counted
    {
        let Guest { kernel, boot, .. } = outcome.guest;
        complaints.extend(bpf_stats::compare(kernel, boot, &report.programs)?);
    }
    for complaint in complaints {
        outcome.sum.add_failure(complaint);
    }
    Ok(())
}

/// Shows the times of guests and of the slowest tests.
fn print_times(outcomes: &[Outcome]) {
    let mut guests: Vec<_> = outcomes
        .iter()
        .map(|outcome| (outcome.took.as_secs(), outcome.guest.label()))
        .collect();
    longest_first(&mut guests);
    for (seconds, label) in guests {
        println!("took {seconds} s: {label}");
    }
    let mut slow: Vec<_> = outcomes
        .iter()
        .flat_map(|outcome| {
            outcome
                .slow
                .iter()
                .map(|slow| (outcome.guest.label(), slow))
        })
        .collect();
    slow.sort_by(|(_, one), (_, other)| other.seconds.total_cmp(&one.seconds));
    for (label, slow) in slow.into_iter().take(SLOWEST) {
        println!("took {:.1} s: {label}: {}", slow.seconds, slow.test);
    }
}

fn unit_tests(name: Option<&str>) -> Result<Sum> {
    let start = Instant::now();
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
    let took: Duration = start.elapsed();
    println!("host: took {} s", took.as_secs());
    Ok(sum)
}
