//! `cargo xtask bpf-stats`: what the programs cost the verifier, and how big they
//! are, on each kernel. Compared to what is committed in `bpf-stats.jsonl`.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    build::{self, Profile, Programs},
    config::{Cgroup, Image},
    kernel::{KERNELS, Kernel},
    matrix::NO_BPF,
    report::{Program, Report},
    setup::{self, Needs},
    vm::Vm,
};

/// How much more than the baseline is taken for no change, percent. Another
/// patch release of a kernel, or another compiler, may move it that far.
const MARGIN: u64 = 50;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the results into the baseline, instead of a comparison with it
    #[arg(long)]
    update: bool,
}

/// By kernel and boot parameters.
type Baseline = BTreeMap<String, Vec<Program>>;

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    boot: String,
    #[serde(flatten)]
    program: Program,
}

/// The boots that load different programs.
const BOOTS: [&[&str]; 2] = [&[], &[NO_BPF]];

fn key(kernel: &Kernel, boot: &[&str]) -> String {
    format!("{} {}", kernel.name, boot.join(" "))
        .trim_end()
        .to_owned()
}

fn path() -> PathBuf {
    build::workspace().join("xtask/bpf-stats.jsonl")
}

fn baseline() -> Result<Baseline> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut baseline = Baseline::new();
    for line in text.lines() {
        let line: Line =
            serde_json::from_str(line).with_context(|| format!("parse {}", path.display()))?;
        baseline.entry(line.boot).or_default().push(line.program);
    }
    Ok(baseline)
}

fn write(baseline: Baseline) -> Result<()> {
    let mut text = String::new();
    for (boot, programs) in baseline {
        for program in programs {
            let boot = boot.clone();
            text += &serde_json::to_string(&Line { boot, program })?;
            text.push('\n');
        }
    }
    fs::write(path(), text).with_context(|| format!("write {}", path().display()))
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let kernels = || KERNELS.iter().filter(|kernel| kernel.is_counted);
    let guests = kernels().map(|kernel| (kernel, Image::Initramfs));
    let needs = Needs::guests(guests);
    let programs = setup::guest_programs(&needs, |_| Profile::Release)?;
    let mut found = Baseline::new();
    let mut complaints = Vec::new();
    let boots = kernels().flat_map(|kernel| BOOTS.map(|boot| (kernel, boot)));
    for (kernel, boot) in boots {
        let report = ask(kernel, boot, &programs)?;
        println!("{} ({}):", key(kernel, boot), report.kernel);
        for program in &report.programs {
            println!(
                "  {:<25} {:>8} instructions verified {:>6} bytes",
                program.name,
                shown(program.instructions_verified),
                shown(program.bytes_jited)
            );
        }
        if args.update {
            let lost = report.programs.iter().find(|program| !program.loaded);
            ensure!(
                lost.is_none(),
                "{}: {lost:?} is not loaded",
                key(kernel, boot)
            );
        } else {
            complaints.extend(compare(kernel, boot, &report.programs)?);
            complaints.extend(missing(kernel, boot, &report.programs)?);
        }
        let all = report.programs.iter();
        let sum: u32 = all
            .filter_map(|program| program.instructions_verified)
            .sum();
        println!("  {:<25} {sum:>8} instructions verified", "all");
        found.insert(key(kernel, boot), report.programs);
    }
    if args.update {
        write(found)?;
    }
    for complaint in &complaints {
        println!("{complaint}");
    }
    Ok(match complaints.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn shown(number: Option<u32>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// With the service and both hierarchies every program is loaded.
const ASK: &str = "freezer-guard daemon --config /dev/null >/dev/null 2>&1 & \
    until [ -e /sys/fs/bpf/freezer-guard/program-file_permission_v2 ]; do sleep 1; done; \
    freezer-guard doctor --json";

fn ask(kernel: &Kernel, boot: &[&str], programs: &Programs) -> Result<Report> {
    let command = ["sh", "-c", ASK].map(str::to_owned);
    let layout = Cgroup::Hybrid;
    let mut vm = Vm::new(kernel.name, layout, Image::Initramfs, command.to_vec());
    vm.config.boot = boot.iter().map(|&word| word.to_owned()).collect();
    let mut report = None;
    vm.boot(programs, |line| {
        report = report.take().or_else(|| serde_json::from_str(line).ok());
    })?;
    report.with_context(|| {
        format!(
            "{}: `freezer-guard doctor --json` wrote no report",
            kernel.name
        )
    })
}

/// The programs of the baseline that are not there any more.
fn missing(kernel: &Kernel, boot: &[&str], programs: &[Program]) -> Result<Vec<String>> {
    let key = key(kernel, boot);
    let is_missing = |known: &&Program| programs.iter().all(|program| program.name != known.name);
    let baseline = baseline()?;
    let known = baseline.get(&key).map_or(&[][..], Vec::as_slice);
    Ok(known
        .iter()
        .filter(is_missing)
        .map(|known| format!("{key}: the BPF program {} is missing: if you removed it, run `cargo xtask bpf-stats --update`", known.name))
        .collect())
}

/// What has grown beyond the margin, or is new. Nothing is known of boots that
/// load the same programs as another one. A guest with one hierarchy loads a part of them.
pub(crate) fn compare(kernel: &Kernel, boot: &[&str], programs: &[Program]) -> Result<Vec<String>> {
    if !BOOTS.contains(&boot) {
        return Ok(Vec::new());
    }
    let baseline = baseline()?;
    let key = key(kernel, boot);
    let known = baseline.get(&key).map_or(&[][..], Vec::as_slice);
    Ok(programs
        .iter()
        .filter_map(|program| {
            let name = &program.name;
            let why = match known.iter().find(|known| known.name == *name) {
                Some(known) => grown(known, program)?,
                None => "is not in the baseline".to_owned(),
            };
            Some(format!(
                "{key}: the BPF program {name} {why}: run `cargo xtask bpf-stats` for all numbers, and \
                 with --update to accept them"
            ))
        })
        .collect())
}

fn grown(known: &Program, program: &Program) -> Option<String> {
    if !program.loaded {
        return Some("is not loaded".to_owned());
    }
    let grown = |what: &str, known: Option<u32>, now: Option<u32>| {
        let (known, now) = (u64::from(known?), u64::from(now?));
        (now * 100 > known * (100 + MARGIN))
            .then(|| format!("has grown from {known} to {now} {what}"))
    };
    grown(
        "instructions to verify",
        known.instructions_verified,
        program.instructions_verified,
    )
    .or_else(|| grown("bytes", known.bytes_jited, program.bytes_jited))
}

#[cfg(test)]
mod tests {
    use super::{Program, grown};

    fn program(instructions: u32, bytes: u32) -> Program {
        Program {
            name: "one".to_owned(),
            loaded: true,
            instructions_verified: Some(instructions),
            bytes_jited: Some(bytes),
        }
    }

    #[test]
    fn half_as_much_again_is_taken_for_the_same() {
        let known = program(1000, 100);
        assert_eq!(grown(&known, &program(1500, 150)), None);
        assert_eq!(grown(&known, &program(10, 10)), None);
        assert!(grown(&known, &program(1501, 100)).is_some());
        assert!(grown(&known, &program(1000, 151)).is_some());
        let untold = Program {
            instructions_verified: None,
            ..program(0, 150)
        };
        assert_eq!(grown(&known, &untold), None);
    }
}
