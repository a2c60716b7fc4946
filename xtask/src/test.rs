//! `cargo xtask test`: unit tests here, integration tests in guests, one sum.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build,
    config::{Cgroup, Image},
    setup,
    vm::Vm,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose names contain this
    name: Option<String>,
    /// Only these kernels
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Only these cgroup layouts: v1, v2 or hybrid
    #[arg(long, value_name = "LAYOUT")]
    cgroup: Vec<Cgroup>,
    /// Only these images: initramfs or systemd
    #[arg(long, value_name = "IMAGE")]
    image: Vec<Image>,
    /// Guests to run at the same time
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
}

/// A list of security modules without `bpf`.
const NO_BPF: &str = "lockdown,yama";

/// A guest of the matrix.
#[derive(Clone, Copy)]
struct Guest {
    kernel: &'static str,
    cgroup: Cgroup,
    image: Image,
    lsm: Option<&'static str>,
}

const fn guest(kernel: &'static str, cgroup: Cgroup, image: Image) -> Guest {
    Guest {
        kernel,
        cgroup,
        image,
        lsm: None,
    }
}

/// Every guest that a change must pass in.
const MATRIX: [Guest; 7] = [
    guest("6.1", Cgroup::V1, Image::Initramfs),
    guest("6.1", Cgroup::V2, Image::Initramfs),
    guest("6.12", Cgroup::V1, Image::Initramfs),
    guest("6.12", Cgroup::V2, Image::Initramfs),
    guest("6.1", Cgroup::Hybrid, Image::Systemd),
    guest("6.12", Cgroup::V2, Image::Systemd),
    Guest {
        lsm: Some(NO_BPF),
        ..guest("6.12", Cgroup::V2, Image::Initramfs)
    },
];

#[derive(Default, Clone, Copy)]
struct Sum {
    passed: usize,
    failed: usize,
}

impl Sum {
    /// Adds what one `test result:` line of libtest says; `false` for any other line.
    fn add_line(&mut self, line: &str) -> bool {
        let Some((_, result)) = line.split_once("test result: ") else {
            return false;
        };
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

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    setup::setup(false)?;
    let guests: Vec<_> = MATRIX
        .into_iter()
        .filter(|guest| args.wants(guest))
        .collect();
    ensure!(
        !guests.is_empty(),
        "no guest of the matrix has this kernel, layout and image"
    );
    let mut sum = unit_tests(args.name.as_deref())?;
    sum.add(in_guests(args, &guests)?);
    if let Some(name) = args
        .name
        .as_deref()
        .filter(|_| sum.passed + sum.failed == 0)
    {
        anyhow::bail!("no test has a name that contains {name}");
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Args {
    fn wants(&self, guest: &Guest) -> bool {
        fn named<T>(list: &[T], is: impl Fn(&T) -> bool) -> bool {
            list.is_empty() || list.iter().any(is)
        }
        named(&self.kernel, |kernel| kernel == guest.kernel)
            && named(&self.cgroup, |cgroup| *cgroup == guest.cgroup)
            && named(&self.image, |image| *image == guest.image)
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
        println!("host: cargo test failed");
        sum.failed += 1;
    }
    Ok(sum)
}

fn in_guests(args: &Args, guests: &[Guest]) -> Result<Sum> {
    let programs = build::guest_programs()?;
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Sum::default()));
    let work = || {
        while let Some(guest) = guests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut kept = String::new();
            let part = guest.test(args.name.as_deref(), &programs, |line| {
                if args.jobs > 1 {
                    kept += line;
                    kept.push('\n');
                } else {
                    println!("{line}");
                }
            });
            print!("{kept}");
            match sum.lock() {
                Ok(mut sum) => sum.add(part),
                Err(poisoned) => poisoned.into_inner().add(part),
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| ()))
    })
    .map_err(|()| anyhow::anyhow!("a thread that runs a guest has panicked"))?;
    sum.into_inner()
        .map_err(|_| anyhow::anyhow!("a thread that runs a guest has panicked"))
}

impl Guest {
    /// Runs the integration tests; a guest without a result counts as one failure.
    fn test(&self, name: Option<&str>, programs: &[PathBuf], mut show: impl FnMut(&str)) -> Sum {
        let mut command = vec!["integration".to_owned()];
        command.extend(name.map(str::to_owned));
        let mut vm = Vm::new(self.kernel, self.cgroup, self.image, command);
        vm.cmdline
            .extend(self.lsm.map(|list| format!("lsm={list}")));
        let mut label = vm.config.label();
        if let Some(list) = self.lsm {
            label += &format!(" lsm={list}");
        }
        let mut sum = Sum::default();
        let mut has_result = false;
        let ended = vm.boot(programs, |line| {
            has_result |= sum.add_line(line);
            show(&format!("{label}: {line}"));
        });
        let complaint = match ended {
            Err(error) => Some(format!("{error:#}")),
            Ok(code) if !has_result => Some(format!("ended with {code} and without a result")),
            Ok(code) if code != 0 && sum.failed == 0 => Some(format!("ended with {code}")),
            Ok(_) => None,
        };
        if let Some(complaint) = complaint {
            sum.failed += 1;
            show(&format!("{label}: FAILED: {complaint}"));
        }
        sum
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
}
