//! The table of guests and suites. `tests/src/integration/table.rs` has the table of suites
//! and tests.

use crate::{
    config::{
        Cgroup::{self, Hybrid, V1, V2},
        Image::{self, Initramfs, Systemd},
        Suite::{self, Core, Engines, Full, Levels, Mixed, Refused, Service, Short, Soak},
        YOUKI_PATH,
    },
    kernel::{KERNELS, Kernel},
    setup::{self, Needs},
    vm::Vm,
};

/// A list of security modules without `bpf`.
pub(crate) const NO_BPF: &str = "lsm=lockdown,yama";
const PREEMPT_FULL: &str = "preempt=full";
/// A small host.
const SMALL: [&str; 2] = ["maxcpus=1", "mem=512M"];
/// A host whose second CPU has no timer's interrupts while one task runs there.
const QUIET: [&str; 2] = ["nohz_full=1", "rcu_nocbs=1"];
const LOCKED_DOWN: &str = "lockdown=confidentiality";

/// Those for amd64, each once.
const ALL: &[&str] = &["6.1", "6.12", "6.18", "7.3"];
/// A kernel with `CONFIG_PREEMPT_RT`.
const REAL_TIME: &[&str] = &["6.12-rt"];
/// A kernel with the newest programs.
const EXPERIMENTAL: &[&str] = &["7.3-experimental"];
const ARM64: &[&str] = &["6.12-arm64", "7.3-arm64"];

/// Guests that differ in their kernel alone.
struct Row {
    cgroup: Cgroup,
    image: Image,
    boot: &'static [&'static str],
    kernels: &'static [&'static str],
    /// The suites of a release, on each of these kernels. Each suite has a boot of its own.
    release: &'static [Suite],
    /// The suites of each change, with their kernels.
    change: &'static [(&'static str, Suite)],
}

#[rustfmt::skip]
const MATRIX: [Row; 25] = [
    row(V1, Initramfs, &[], ALL, &[Full, Soak], &[("6.1", Core)]),
    row(V2, Initramfs, &[], ALL, &[Full, Soak], &[("6.12", Full)]),
    row(Hybrid, Initramfs, &[], ALL, &[Full], &[("6.12", Mixed)]),
    row(V1, Initramfs, &[NO_BPF], ALL, &[Full], &[]),
    row(V2, Initramfs, &[NO_BPF], ALL, &[Full], &[]),
    row(V1, Initramfs, &[PREEMPT_FULL], ALL, &[Full, Soak], &[]),
    row(V2, Initramfs, &[PREEMPT_FULL], ALL, &[Full, Soak], &[]),
    row(Hybrid, Initramfs, &[PREEMPT_FULL], ALL, &[Mixed], &[]),
    row(V1, Initramfs, &[NO_BPF, PREEMPT_FULL], ALL, &[Levels], &[]),
    row(V2, Initramfs, &[NO_BPF, PREEMPT_FULL], ALL, &[Levels, Soak], &[("6.12", Levels)]),
    row(V2, Initramfs, &SMALL, ALL, &[Core], &[]),
    row(V2, Initramfs, &QUIET, ALL, &[Core], &[]),
    row(V2, Initramfs, &[], EXPERIMENTAL, &[Full], &[]),
    row(V1, Initramfs, &[], ARM64, &[Full], &[]),
    row(V2, Initramfs, &[], ARM64, &[Full], &[("7.3-arm64", Core)]),
    row(V2, Initramfs, &[], REAL_TIME, &[Core], &[]),
    row(V2, Initramfs, &[LOCKED_DOWN], &["6.12"], &[Refused], &[("6.12", Refused)]),
    row(V2, Initramfs, &[], &["6.1-arm64"], &[Refused], &[]),
    // Once for each userland.
    row(V2, Systemd, &[], &["6.1", "6.18", "7.3"], &[Engines], &[]),
    row(Hybrid, Systemd, &[], &["6.1"], &[Engines], &[]),
    row(V2, Systemd, &[], ALL, &[Service, Short, Full], &[("7.3", Service), ("7.3", Short)]),
    row(V2, Systemd, &[], EXPERIMENTAL, &[Service, Engines], &[]),
    row(V2, Systemd, &[], ARM64, &[Service], &[]),
    row(V2, Systemd, &[], &["6.12-arm64"], &[Short], &[]),
    row(Hybrid, Systemd, &[], ALL, &[Service, Short, Full], &[]),
];

const fn row(
    cgroup: Cgroup,
    image: Image,
    boot: &'static [&'static str],
    kernels: &'static [&'static str],
    release: &'static [Suite],
    change: &'static [(&'static str, Suite)],
) -> Row {
    Row {
        cgroup,
        image,
        boot,
        kernels,
        release,
        change,
    }
}

impl Row {
    /// Not every systemd can mount every layout.
    fn has(&self, kernel: &Kernel) -> bool {
        self.kernels.contains(&kernel.name)
            && (self.image == Initramfs || kernel.userland.layouts.contains(&self.cgroup))
    }

    /// Returns whether this suite has tests in such a guest.
    fn takes(&self, suite: Suite) -> bool {
        match suite {
            Service | Short | Engines | Refused => self.release.contains(&suite),
            Levels | Mixed | Core | Full | Soak => match self.release {
                // A small host.
                [Core] => suite == Core,
                suites => suites
                    .iter()
                    .any(|suite| matches!(suite, Levels | Mixed | Full)),
            },
        }
    }

    fn guest(&self, kernel: &'static Kernel, suite: Suite) -> Guest {
        Guest {
            kernel,
            cgroup: self.cgroup,
            image: self.image,
            boot: self.boot,
            suite,
        }
    }
}

/// One boot and its suite.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) kernel: &'static Kernel,
    pub(crate) cgroup: Cgroup,
    pub(crate) image: Image,
    pub(crate) boot: &'static [&'static str],
    pub(crate) suite: Suite,
}

/// The guests of a release on these kernels.
pub(crate) fn release(kernels: &[&'static Kernel]) -> Vec<Guest> {
    guests(kernels, |row, _| row.release.to_vec())
}

/// The guests of each change.
pub(crate) fn change() -> Vec<Guest> {
    let all: Vec<_> = KERNELS.iter().collect();
    guests(&all, |row, kernel| {
        let here = row.change.iter().filter(|(name, _)| *name == kernel.name);
        here.map(|(_, suite)| *suite).collect()
    })
}

/// All guests with tests of this suite, on these kernels.
pub(crate) fn with_suite(kernels: &[&'static Kernel], suite: Suite) -> Vec<Guest> {
    guests(kernels, |row, _| match row.takes(suite) {
        true => vec![suite],
        false => Vec::new(),
    })
}

fn guests(kernels: &[&'static Kernel], suites: impl Fn(&Row, &Kernel) -> Vec<Suite>) -> Vec<Guest> {
    let mut guests = Vec::new();
    for kernel in kernels.iter().copied() {
        for row in MATRIX.iter().filter(|row| row.has(kernel)) {
            let suites = suites(row, kernel).into_iter();
            guests.extend(suites.map(|suite| row.guest(kernel, suite)));
        }
    }
    guests
}

/// The needs of these guests.
pub(crate) fn needs(guests: &[Guest]) -> Needs {
    let mut needs = Needs::guests(guests.iter().map(|guest| (guest.kernel, guest.image)));
    if guests.iter().any(|guest| guest.image == Systemd) {
        needs = needs.with_package();
    }
    if guests.iter().any(Guest::has_youki) {
        needs = needs.with_engines();
    }
    needs
}

impl Guest {
    /// `6.12 v2 initramfs preempt=full, full`: no other guest has this label.
    pub(crate) fn label(&self) -> String {
        format!(
            "{}, {}",
            self.vm(Vec::new()).config.label(),
            self.suite.name()
        )
    }

    /// The guest that runs this command.
    pub(crate) fn vm(&self, command: Vec<String>) -> Vm {
        let mut vm = Vm::new(self.kernel.name, self.cgroup, self.image, command);
        vm.config.suite = self.suite;
        vm.config.boot = self.boot.iter().map(|&word| word.to_owned()).collect();
        if self.has_youki() {
            vm.copies.push((setup::youki(), YOUKI_PATH.to_owned()));
        }
        vm
    }

    /// Returns whether its tests have youki among their engines.
    fn has_youki(&self) -> bool {
        self.suite == Engines
    }

    /// Returns whether `--docs` boots this guest. Each boot counts once, and engines do.
    pub(crate) fn is_for_docs(&self) -> bool {
        match self.suite {
            Engines => true,
            Full | Levels | Refused => (self.cgroup, self.image) == (V2, Initramfs),
            Core => {
                self.boot == SMALL || self.boot == QUIET || REAL_TIME.contains(&self.kernel.name)
            }
            _ => false,
        }
    }

    /// How long it takes on two cores without KVM, seconds: a guess for a guest that has
    /// not been timed.
    pub(crate) fn usual_seconds(&self) -> u64 {
        let each = match self.suite {
            Refused => 20,
            Levels => 120,
            Mixed => 90,
            Core => 180,
            Full | Short => 480,
            Service | Soak => 750,
            Engines => 4500,
        };
        // Both hierarchies are tested.
        each * if self.cgroup == Hybrid { 2 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Guest, KERNELS, Kernel, MATRIX, Systemd, change, release};
    use crate::image::USERLANDS;

    fn labels(guests: &[Guest]) -> BTreeSet<String> {
        let labels: BTreeSet<_> = guests.iter().map(Guest::label).collect();
        assert_eq!(labels.len(), guests.len(), "two guests have one label");
        labels
    }

    fn whole_release() -> Vec<Guest> {
        release(&KERNELS.iter().collect::<Vec<_>>())
    }

    #[test]
    fn rows_name_kernels_that_there_are() {
        for row in &MATRIX {
            for name in row.kernels {
                Kernel::named(name).expect("a kernel");
            }
            for (name, _) in row.change {
                let kernel = Kernel::named(name).expect("a kernel");
                assert!(row.has(kernel), "{name} is not in its own row");
            }
        }
    }

    #[test]
    fn a_release_passes_more_than_a_change_in_every_guest() {
        let boot = |guest: &Guest| guest.label().split(", ").next().map(str::to_owned);
        let all: BTreeSet<_> = whole_release().iter().map(boot).collect();
        for guest in change() {
            assert!(all.contains(&boot(&guest)), "{}", guest.label());
        }
        assert!(labels(&change()).len() < labels(&whole_release()).len());
    }

    #[test]
    fn the_docs_list_the_guests_of_a_change() {
        let chapter = include_str!("../../docs/testing.md");
        let (_, table) = chapter
            .split_once("| guest of a change |\n|---|\n")
            .expect("the chapter has a table of guests");
        let rows = table.lines().take_while(|line| line.starts_with('|'));
        let listed = rows.map(|row| row.trim_matches(['|', ' ', '`']).to_owned());
        assert_eq!(listed.collect::<BTreeSet<_>>(), labels(&change()));
    }

    #[test]
    fn the_docs_list_every_suite() {
        let chapter = include_str!("../../docs/testing.md");
        for guest in whole_release().iter().chain(&change()) {
            let row = format!("| `{}` | ", guest.suite.name());
            assert!(chapter.contains(&row), "{}", guest.suite.name());
        }
    }

    #[test]
    fn every_layout_of_a_userland_is_tested() {
        let all = whole_release();
        for userland in USERLANDS {
            for layout in userland.layouts {
                let found = all.iter().any(|guest| {
                    guest.kernel.userland.name() == userland.name()
                        && (guest.image, guest.cgroup) == (Systemd, *layout)
                });
                assert!(found, "{} {}", userland.name(), layout.name());
            }
        }
    }

    /// The names of the modules that have tests in these guests.
    fn modules(guests: &[Guest]) -> BTreeSet<&'static str> {
        let suites: BTreeSet<_> = guests.iter().map(|guest| guest.suite.name()).collect();
        freezer_guard_tests::integration::parts()
            .filter(|(_, of)| of.iter().any(|suite| suites.contains(suite.name())))
            .map(|(module, _)| module)
            .collect()
    }

    #[test]
    fn a_release_tests_every_part_of_every_module() {
        let all = whole_release();
        let suites: BTreeSet<_> = all.iter().map(|guest| guest.suite.name()).collect();
        for (module, of) in freezer_guard_tests::integration::parts() {
            let is_tested = of.iter().any(|suite| suites.contains(suite.name()));
            assert!(is_tested, "{module}");
        }
    }

    #[test]
    fn each_change_tests_every_module_but_one() {
        let (mut all, change) = (modules(&whole_release()), modules(&change()));
        // It takes too long.
        assert!(all.remove("large"), "there is no module large");
        assert_eq!(change, all);
    }
}
