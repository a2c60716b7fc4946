//! Replays of bundles: one of a kernel that has all, altered ones, and those in `samples`, which come from
//! guests of the tests.

use std::{collections::BTreeMap, fs, path::Path};

use freezer_guard_abi::Level;
use serde_json::Value;

use super::{Bundle, Replay};
use crate::{
    doctor::{KernelFacts, MountedHierarchies, Reason, Trial, Verdict},
    json::{VERSION, Versioned},
    kernel::RecordedTypes,
};

/// The name of the hosts that the samples come from.
const HOST: &str = "bundlehost";

/// Bundles from guests of the tests: their names, and their texts.
fn samples() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doctor/samples");
    let entries = fs::read_dir(dir).expect("they are there").flatten();
    let samples = entries.map(|entry| {
        let text = fs::read_to_string(entry.path()).expect("it can be read");
        (entry.file_name().to_string_lossy().into_owned(), text)
    });
    let samples: Vec<_> = samples.collect();
    assert!(samples.len() >= 4, "{} samples", samples.len());
    samples
}

fn parsed(text: &str) -> Bundle {
    serde_json::from_str(text).expect("a bundle")
}

/// A host whose kernel has all that we look at, and that had a guard at `enforce` on v2.
fn whole() -> Bundle {
    let levels = ["freeze", "kill", "migrate", "ptrace"];
    Bundle {
        freezer_guard: crate::VERSION.to_owned(),
        verdict: Verdict::Good,
        levels: Some(
            levels
                .into_iter()
                .map(|name| (name.to_owned(), "enforce".to_owned()))
                .collect(),
        ),
        kernel: KernelFacts {
            release: "6.99.0".to_owned(),
            build: String::new(),
            architecture: String::new(),
            configuration: None,
            security_modules: Some("lockdown,bpf".to_owned()),
            lockdown: "[none] integrity confidentiality".to_owned(),
            function_tracing: true,
            types: Some(RecordedTypes::whole()),
            no_types: None,
        },
        cgroups: MountedHierarchies {
            v1_freezer: false,
            v2: true,
        },
        versions: BTreeMap::new(),
        checks: Vec::new(),
        trials: vec![trial(Level::Enforce)],
        programs: Vec::new(),
    }
}

/// A complete trial on v2, with the programs of a level.
fn trial(level: Level) -> Trial {
    Trial {
        hierarchy: "v2".to_owned(),
        loaded: Some(level.name().to_owned()),
        held: false,
        levels: Some(BTreeMap::new()),
        refused: Some(true),
        permitted_afterwards: Some(true),
        violations: Some(0),
        proven: Some(true),
        reasons: Vec::new(),
    }
}

fn types(bundle: &mut Bundle) -> &mut RecordedTypes {
    bundle.kernel.types.as_mut().expect("it has BTF")
}

fn decided<'a>(replay: &'a Replay, protection: &str) -> &'a str {
    let row = replay.rows.iter().find(|row| row.protection == protection);
    row.expect("a row").decided.unwrap_or("undecided")
}

#[test]
fn a_kernel_that_has_all_enforces_wherever_it_is_decided() {
    let replay = Replay::of(&whole());
    assert!(replay.agrees(), "{replay:?}");
    assert!(
        replay.reasons.is_empty() && replay.missing.is_empty(),
        "{replay:?}"
    );
    let text = serde_json::to_string(&Versioned::new(whole())).expect("it is JSON");
    assert!(Replay::of(&parsed(&text)).agrees());
}

/// The names of what is missing are the reasons.
#[test]
fn a_missing_symbol_makes_a_difference_with_a_reason() {
    let mut bundle = whole();
    types(&mut bundle)
        .targets
        .insert("cgroup_attach_permissions".to_owned(), None);
    let replay = Replay::of(&bundle);
    assert!(!replay.agrees());
    assert_eq!(decided(&replay, "migrate"), "detect");
    assert_eq!(decided(&replay, "freeze"), "enforce");
    assert!(
        replay
            .reasons
            .join(" ")
            .contains("cgroup_attach_permissions")
    );
    assert_eq!(replay.missing, ["cgroup_attach_permissions"]);

    let mut bundle = whole();
    types(&mut bundle)
        .fields
        .insert("cgroup.kn".to_owned(), None);
    let replay = Replay::of(&bundle);
    assert_eq!(decided(&replay, "freeze"), Level::name_of(None));
    assert!(replay.reasons.join(" ").contains("cgroup.kn"));
}

#[test]
fn the_settings_of_the_host_count() {
    for (change, level, reason) in [
        (
            (|kernel| kernel.security_modules = Some("lockdown,yama".to_owned()))
                as fn(&mut KernelFacts),
            "best-effort",
            "do not include bpf",
        ),
        (
            |kernel| kernel.lockdown = "none [confidentiality]".to_owned(),
            Level::name_of(None),
            "locked down",
        ),
        (
            |kernel| kernel.function_tracing = false,
            Level::name_of(None),
            "function tracing is off",
        ),
        (
            |kernel| kernel.security_modules = None,
            Level::name_of(None),
            "mount -t securityfs",
        ),
        (
            |kernel| kernel.types = None,
            Level::name_of(None),
            "CONFIG_DEBUG_INFO_BTF",
        ),
    ] {
        let mut bundle = whole();
        change(&mut bundle.kernel);
        let replay = Replay::of(&bundle);
        assert_eq!(decided(&replay, "kill"), level);
        assert!(replay.reasons.join(" ").contains(reason), "{replay:?}");
    }
}

#[test]
fn every_sample_is_decided_as_its_host_was() {
    for (name, text) in samples() {
        let replay = Replay::of(&parsed(&text));
        assert!(replay.agrees(), "{name}: {replay:?}");
        let strongest = match name.contains("no-bpf") {
            true => Level::BestEffort,
            false => Level::Enforce,
        };
        for row in &replay.rows {
            assert_eq!(row.decided, Some(strongest.name()), "{name}: {replay:?}");
            assert_eq!(row.promised, strongest.name(), "{name}: {replay:?}");
        }
    }
}

/// Each field of a sample is one that a bundle has, and no finding is there that may be private.
#[test]
fn a_sample_names_nothing_of_its_host() {
    const PRIVATE: [&str; 4] = ["cgroups", "CRIU", "automatic guards", "engines"];
    for (name, text) in samples() {
        assert!(!text.contains(HOST), "{name}");
        assert!(!text.contains("/sys/fs/cgroup"), "{name}");
        let bundle = parsed(&text);
        let checks = bundle.checks.iter();
        for check in checks.filter(|check| PRIVATE.contains(&&*check.name)) {
            assert_eq!((&check.finding, &check.remedy), (&None, &None), "{name}");
        }
        let again = serde_json::to_value(Versioned::new(bundle)).expect("it is JSON");
        let known: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(known["version"], VERSION);
        assert_eq!(known, again, "{name}");
    }
}

/// A program that the kernel did not call protects from nothing, even if BTF promises its function.
#[test]
fn a_program_that_was_never_called_counts_as_missing() {
    for (name, text) in samples() {
        let mut changed = parsed(&text);
        let mut programs = changed.programs.iter_mut();
        let program = programs.find(|program| program.name == "task_kill");
        program.expect("it was tried").calls = Some(0);
        let replay = Replay::of(&changed);
        assert_eq!(decided(&replay, "kill"), "detect", "{name}");
        let kill = replay.rows.iter().find(|row| row.protection == "kill");
        assert!(
            kill.is_some_and(|row| row.promised == row.recorded),
            "{name}"
        );
    }
}

/// The verifier rejects a program that no guard goes without, so no guard begins and no program is listed.
#[test]
fn a_trial_that_failed_decides_nothing() {
    let mut bundle = whole();
    bundle.levels = None;
    bundle.trials = vec![Trial {
        loaded: None,
        levels: None,
        refused: None,
        permitted_afterwards: None,
        violations: None,
        proven: None,
        reasons: vec![Reason {
            text: Some("load the BPF program move_task_exit".to_owned()),
            verifier_log: Some("R1 invalid mem access".to_owned()),
        }],
        ..trial(Level::Enforce)
    }];
    let replay = Replay::of(&bundle);
    assert_eq!(replay.incomplete, ["the guard on v2 failed"]);
    assert!(!replay.agrees());
    for row in &replay.rows {
        assert_eq!((row.promised, row.decided), ("enforce", None));
    }

    bundle.trials.clear();
    let replay = Replay::of(&bundle);
    assert_eq!(replay.incomplete, ["no guard was tried out on v2"]);

    // No trial can tell more of a host that can have no guard.
    bundle.kernel.lockdown = "none [confidentiality]".to_owned();
    let replay = Replay::of(&bundle);
    assert!(
        replay.incomplete.is_empty() && replay.agrees(),
        "{replay:?}"
    );
}

/// The kernel permits no program to change the return value of a function, so the programs that only detect
/// are loaded, and no other is listed.
#[test]
fn a_kernel_that_lets_no_program_refuse_is_decided_to_detect() {
    let mut bundle = whole();
    bundle.kernel.security_modules = Some("lockdown,yama".to_owned());
    bundle.trials = vec![trial(Level::Detect)];
    for level in bundle.levels.iter_mut().flat_map(BTreeMap::values_mut) {
        Level::Detect.name().clone_into(level);
    }
    let replay = Replay::of(&bundle);
    assert!(replay.agrees(), "{replay:?}");
    for row in &replay.rows {
        assert_eq!((row.promised, row.decided), ("best-effort", Some("detect")));
    }
}

#[test]
fn a_trial_beside_a_weaker_guard_decides_nothing() {
    let mut bundle = whole();
    let held = |level| Trial {
        held: true,
        ..trial(level)
    };
    bundle.trials = vec![held(Level::Detect)];
    let replay = Replay::of(&bundle);
    assert!(!replay.agrees());
    assert!(replay.incomplete.concat().contains("at the level detect"));
    bundle.trials = vec![held(Level::Enforce)];
    assert!(Replay::of(&bundle).agrees());
}
