//! What a maintainer needs of a host: facts, checks and trials, and nothing private. A finding that may
//! name a file, a process, a cgroup or a user of the host is left out.

use std::{
    collections::{BTreeMap, HashMap},
    env::consts::ARCH,
    net::Ipv4Addr,
    path::Path,
};

use procfs::ConfigSetting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Check, Report, Trial, Verdict, kernel::proc_file};
use crate::{
    VERSION, cgroup,
    criu::stdout_of,
    guard::chain,
    kernel::{ProgramReport, RecordedTypes, prerequisites, recorded_types},
};

/// The options of the kernel's configuration that matter to guards, without `CONFIG_`.
const OPTIONS: [&str; 48] = [
    "BPF",
    "BPF_EVENTS",
    "BPF_JIT",
    "BPF_JIT_ALWAYS_ON",
    "BPF_LSM",
    "BPF_SYSCALL",
    "BPF_UNPRIV_DEFAULT_OFF",
    "CC_VERSION_TEXT",
    "CFI",
    "CFI_CLANG",
    "CGROUPS",
    "CGROUP_BPF",
    "CGROUP_FREEZER",
    "CHECKPOINT_RESTORE",
    "DEBUG_INFO_BTF",
    "DYNAMIC_FTRACE",
    "DYNAMIC_FTRACE_WITH_ARGS",
    "DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
    "FTRACE",
    "FUNCTION_ERROR_INJECTION",
    "FUNCTION_TRACER",
    "KPROBES",
    "LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY",
    "LSM",
    "LTO_CLANG",
    "MEMCG",
    "MEMCG_V1",
    "MEM_SOFT_DIRTY",
    "NO_HZ_FULL",
    "PAHOLE_HAS_LANG_EXCLUDE",
    "PAHOLE_VERSION",
    "PREEMPT",
    "PREEMPTION",
    "PREEMPT_BUILD",
    "PREEMPT_DYNAMIC",
    "PREEMPT_LAZY",
    "PREEMPT_NONE",
    "PREEMPT_RT",
    "PREEMPT_VOLUNTARY",
    "PROC_PAGE_MONITOR",
    "RANDSTRUCT",
    "RSEQ",
    "SECURITY",
    "SECURITYFS",
    "SECURITY_LOCKDOWN_LSM",
    "SMP",
    "UPROBES",
    "X86_KERNEL_IBT",
];

/// The programs whose versions matter.
const PROGRAMS: [&str; 9] = [
    "criu",
    "runc",
    "crun",
    "podman",
    "docker",
    "containerd",
    "crio",
    "lxc-checkpoint",
    "systemctl",
];

/// Facts about a host, for a maintainer of freezer-guard. They name no host, user, process or cgroup.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Bundle {
    /// The version of freezer-guard, and the id of its BPF programs.
    pub freezer_guard: String,
    /// The verdict of the worst check.
    pub verdict: Verdict,
    /// The level of each protection on this host, or null if it can have no guard.
    pub levels: Option<BTreeMap<String, String>>,
    /// The kernel.
    pub kernel: KernelFacts,
    /// The hierarchies of cgroups that are mounted.
    pub cgroups: MountedHierarchies,
    /// The version of each program that is in PATH.
    pub versions: BTreeMap<String, String>,
    /// The checks, in their order.
    pub checks: Vec<PublicCheck>,
    /// The guards that were tried out.
    pub trials: Vec<Trial>,
    /// The BPF programs of a guard on this host.
    pub programs: Vec<ProgramReport>,
}

/// The kernel of a host.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct KernelFacts {
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The build, as `uname -v` prints it.
    pub build: String,
    /// The architecture of freezer-guard.
    pub architecture: String,
    /// The options of the configuration that matter, or null if there is no `/proc/config.gz` and no
    /// configuration in `/boot`.
    pub configuration: Option<BTreeMap<String, String>>,
    /// The active security modules, or null if securityfs is not mounted.
    pub security_modules: Option<String>,
    /// The modes of lockdown, with brackets around the one in force.
    pub lockdown: String,
    /// Whether the kernel calls programs on functions (`kernel.ftrace_enabled`).
    pub function_tracing: bool,
    /// What BTF says of the fields and functions that matter, or null if there is no BTF.
    pub types: Option<RecordedTypes>,
    /// The reason why there is no BTF, or null.
    pub no_types: Option<String>,
}

/// The hierarchies of cgroups that are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountedHierarchies {
    /// Whether the freezer of v1 is mounted.
    pub v1_freezer: bool,
    /// Whether v2 is mounted.
    pub v2: bool,
}

/// A check, without what may be private.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PublicCheck {
    /// The name of the check.
    pub name: String,
    /// The verdict of the check.
    pub verdict: Verdict,
    /// The finding of the check, or null if it may name a file, process, cgroup or user of the host.
    pub finding: Option<String>,
    /// The remedy, or null.
    pub remedy: Option<String>,
}

impl PublicCheck {
    fn of(check: Check) -> Self {
        let public = !check.is_private;
        Self {
            name: check.name.to_owned(),
            verdict: check.verdict,
            finding: public.then_some(check.finding),
            remedy: check.remedy.filter(|_| public),
        }
    }
}

impl Bundle {
    /// Collects the facts about this host beside what its checks have found.
    pub fn of(report: Report) -> Self {
        let levels = report.levels.map(|levels| {
            let each = levels.into_iter();
            each.map(|(protection, level)| (protection.to_owned(), level.to_owned()))
                .collect()
        });
        let is_mounted = |mount: Result<Option<_>, _>| matches!(mount, Ok(Some(_)));
        Self {
            freezer_guard: VERSION.to_owned(),
            verdict: report.verdict,
            levels,
            kernel: KernelFacts::of_this_host(report.kernel),
            cgroups: MountedHierarchies {
                v1_freezer: is_mounted(cgroup::freezer_mount()),
                v2: is_mounted(cgroup::unified_mount()),
            },
            versions: versions(),
            checks: report.checks.into_iter().map(PublicCheck::of).collect(),
            trials: report.trials,
            programs: report.programs,
        }
    }
}

impl KernelFacts {
    fn of_this_host(release: String) -> Self {
        let (types, no_types) = match recorded_types() {
            Ok(types) => (Some(types), None),
            Err(error) => (None, Some(chain(&error))),
        };
        Self {
            release,
            build: proc_file("/proc/sys/kernel/version"),
            architecture: ARCH.to_owned(),
            configuration: procfs::kernel_config().ok().map(|found| relevant(&found)),
            security_modules: prerequisites::active_modules().ok(),
            lockdown: prerequisites::lockdown_modes(),
            function_tracing: prerequisites::require_tracing().is_ok(),
            types,
            no_types,
        }
    }
}

/// The options that matter. One that is not set is left out.
fn relevant(configuration: &HashMap<String, ConfigSetting>) -> BTreeMap<String, String> {
    let value = |setting: &ConfigSetting| match setting {
        ConfigSetting::Yes => "y".to_owned(),
        ConfigSetting::Module => "m".to_owned(),
        ConfigSetting::Value(text) => text.clone(),
    };
    OPTIONS
        .into_iter()
        .map(|option| format!("CONFIG_{option}"))
        .filter_map(|option| {
            let setting = configuration.get(&option)?;
            let value = value(setting);
            Some((option, value))
        })
        .collect()
}

fn versions() -> BTreeMap<String, String> {
    let found = PROGRAMS.into_iter().filter_map(|program| {
        let text = stdout_of(Path::new(program), &["--version"]).ok()??;
        Some((program.to_owned(), version(&text)?))
    });
    found.collect()
}

/// The version that a program prints, such as `4.1` with the characters that hang on it. The rest may name
/// the machine that built it, or another one.
fn version(text: &str) -> Option<String> {
    let line = text.lines().next()?;
    let mut words = line
        .split_whitespace()
        .map(|word| word.trim_end_matches(','))
        .map(|word| word.strip_prefix('v').unwrap_or(word));
    if let Some(number) = line.strip_prefix("systemd ") {
        let is_digit = |letter: char| letter.is_ascii_digit();
        let number = number.split_whitespace().next()?;
        return number.chars().all(is_digit).then(|| number.to_owned());
    }
    words.find(|word| is_version(word)).map(str::to_owned)
}

/// Returns whether this is `N.N` and more of that kind, but no address.
fn is_version(word: &str) -> bool {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || ".+~-".contains(letter);
    let is_number = |text: &str| text.starts_with(|letter: char| letter.is_ascii_digit());
    let (major, minor) = word.split_once('.').unwrap_or_default();
    is_number(major)
        && major.chars().all(|letter| letter.is_ascii_digit())
        && is_number(minor)
        && minor.chars().all(is_part)
        && word.parse::<Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use procfs::ConfigSetting;

    use super::{OPTIONS, PublicCheck, relevant, version};
    use crate::doctor::Check;

    #[test]
    fn only_the_number_of_a_version_is_kept() {
        for (text, expected) in [
            ("Version: 4.1.1 (gitid 0)", Some("4.1.1")),
            (
                "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+b1",
                Some("1.1.5+ds1"),
            ),
            ("podman version 5.4.2", Some("5.4.2")),
            (
                "Docker version 26.1.5+dfsg1, build a72d7cd",
                Some("26.1.5+dfsg1"),
            ),
            (
                "containerd github.com/containerd/containerd v1.7.24",
                Some("1.7.24"),
            ),
            ("systemd 257 (257.9-1~deb13u1)", Some("257")),
            ("systemd of 10.1.2.3", None),
            ("no version here", None),
            ("cannot connect to 10.1.2.3", None),
            ("cannot connect to 10.1.2.3:80", None),
            ("time=\"2026-11-30T10:00:00.123Z\" level=error", None),
            ("2026-11-30T10:00:00.123Z 7", None),
            ("", None),
        ] {
            assert_eq!(version(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn only_the_options_that_matter_are_kept() {
        let text = |text: &str| ConfigSetting::Value(text.to_owned());
        let configuration = HashMap::from([
            ("CONFIG_BPF_LSM".to_owned(), ConfigSetting::Yes),
            ("CONFIG_LSM".to_owned(), text("\"landlock,bpf\"")),
            ("CONFIG_DEFAULT_HOSTNAME".to_owned(), text("\"secret\"")),
        ]);
        let kept = relevant(&configuration);
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert_eq!(kept["CONFIG_LSM"], "\"landlock,bpf\"");
        assert!(OPTIONS.is_sorted());
    }

    #[test]
    fn a_private_finding_is_left_out() {
        let check = Check::limited("name", "/home/joe/criu", "chown /home/joe/criu");
        let public = PublicCheck::of(check.clone());
        assert_eq!(public.finding.as_deref(), Some("/home/joe/criu"));
        let public = PublicCheck::of(check.private());
        assert_eq!((public.finding, public.remedy), (None, None));
    }
}
