//! The table of tests and suites. `xtask/src/matrix.rs` has the table of suites and guests.

use super::{
    Beside::{self, AnotherGuard, Nothing, TheService},
    List, authority, automatic, bench, checkpoint, doctor, dump, engines, events, failures,
    holders, hybrid, kernel_log, large, levels, lifecycle, metrics, misuse, outsiders, package,
    parallel, paths, places, proof, refuse, service, shutdown, status, storms, units, varlink,
    verify, violations,
};
use crate::config::Suite::{
    self, Core, Engines, Full, Levels, Mixed, Refused, Service, Short, Soak,
};

/// A part of the tests, in the order in which they run.
pub(super) struct Part {
    /// The module of its tests. A module may have more than one part.
    pub(super) module: &'static str,
    /// Puts its tests into the list.
    pub(super) list: fn(&mut List<'_>),
    pub(super) beside: Beside,
    pub(super) suites: &'static [Suite],
}

#[rustfmt::skip]
pub(super) const PARTS: [Part; 47] = [
    part("doctor", failures::list_refused, Nothing, &[Refused]),
    part("package", package::list, TheService, &[Service]),
    part("service", service::list, TheService, &[Service]),
    part("units", units::list, TheService, &[Service]),
    part("automatic", automatic::list, TheService, &[Service]),
    part("authority", authority::list, TheService, &[Service]),
    part("varlink", varlink::list, TheService, &[Service]),
    part("metrics", metrics::list, TheService, &[Service]),
    part("engines", engines::list_short, TheService, &[Short]),
    part("package", package::list_end, TheService, &[Service]),
    part("contained", engines::contained::list, Nothing, &[Short]),
    part("levels", levels::list, Nothing, &[Levels, Core, Full]),
    part("levels", levels::list_each, Nothing, &[Levels, Full]),
    part("levels", levels::crowds::list, Nothing, &[Levels, Soak]),
    part("levels", levels::crowds::list_long, Nothing, &[Soak]),
    part("doctor", doctor::list, Nothing, &[Levels, Mixed, Core, Full]),
    part("doctor", doctor::list_beside, Nothing, &[Full]),
    part("dump", dump::list, AnotherGuard, &[Mixed, Core, Full]),
    part("refuse", refuse::list, AnotherGuard, &[Mixed, Core, Full]),
    part("places", places::list, AnotherGuard, &[Core, Full]),
    part("holders", holders::list, AnotherGuard, &[Core, Full]),
    part("hybrid", hybrid::list, AnotherGuard, &[Mixed, Core, Full]),
    part("violations", violations::list, AnotherGuard, &[Core, Full]),
    part("proof", proof::list, AnotherGuard, &[Core, Full]),
    part("failures", failures::list, Nothing, &[Full]),
    part("kernel_log", kernel_log::list, Nothing, &[Core, Full]),
    part("bench", bench::list, Nothing, &[Full]),
    part("bench", bench::list_long, Nothing, &[Soak]),
    part("misuse", misuse::list, AnotherGuard, &[Full]),
    part("paths", paths::list, AnotherGuard, &[Full]),
    part("status", status::list, AnotherGuard, &[Full]),
    part("verify", verify::list, AnotherGuard, &[Mixed, Full]),
    part("checkpoint", checkpoint::list_unit, AnotherGuard, &[Service]),
    part("checkpoint", checkpoint::list, AnotherGuard, &[Full, Engines]),
    part("checkpoint", checkpoint::list_disturbed, AnotherGuard, &[Full, Engines]),
    part("outsiders", outsiders::list, AnotherGuard, &[Full]),
    part("outsiders", outsiders::list_all, AnotherGuard, &[Soak]),
    part("storms", storms::list, AnotherGuard, &[Full]),
    part("storms", storms::list_long, AnotherGuard, &[Soak]),
    part("large", large::list, AnotherGuard, &[Engines]),
    part("engines", engines::list, Nothing, &[Engines]),
    part("contained", engines::contained::list_all, Nothing, &[Engines]),
    part("parallel", parallel::list, Nothing, &[Full]),
    part("parallel", parallel::list_many, Nothing, &[Soak]),
    part("lifecycle", lifecycle::list, Nothing, &[Full]),
    part("events", events::list, Nothing, &[Full]),
    // The guards that it leaves are in the way of all others.
    part("shutdown", shutdown::list, TheService, &[Service]),
];

const fn part(
    module: &'static str,
    list: fn(&mut List<'_>),
    beside: Beside,
    suites: &'static [Suite],
) -> Part {
    Part {
        module,
        list,
        beside,
        suites,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::PARTS;

    /// The second column of the table of promises.
    #[test]
    fn the_docs_name_every_module_and_no_other() {
        let chapter = include_str!("../../../docs/testing.md");
        let (_, table) = chapter
            .split_once("| promise | module |")
            .expect("the chapter has a table of promises");
        let rows = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        let named: BTreeSet<_> = rows
            .filter_map(|row| row.rsplit(" | ").nth(2))
            .map(|module| module.trim_matches('`'))
            .collect();
        let modules: BTreeSet<_> = PARTS.iter().map(|part| part.module).collect();
        assert_eq!(named, modules);
    }

    /// Behind each invariant: `module`, or `module::test`.
    #[test]
    fn architecture_names_tests_that_there_are() {
        let text = include_str!("../../../ARCHITECTURE.md");
        let (_, invariants) = text
            .split_once("## Invariants")
            .expect("ARCHITECTURE.md has invariants");
        let modules: BTreeSet<_> = PARTS.iter().map(|part| part.module).collect();
        let mut found = 0;
        for quoted in invariants.split('`').skip(1).step_by(2) {
            let (module, test) = quoted.split_once("::").unwrap_or((quoted, ""));
            if modules.contains(module) {
                found += 1;
                let named = test.is_empty() || source(module).contains(&format!("\"{test}\""));
                assert!(named, "there is no test {quoted}");
            } else {
                let is_word = test.is_empty() && !quoted.contains("::");
                assert!(is_word, "there is no module of the test {quoted}");
            }
        }
        assert!(found > 20, "{found}");
    }

    /// `module::test` anywhere.
    #[test]
    fn the_threat_model_names_tests_that_there_are() {
        let text = include_str!("../../../docs/threat-model.md");
        let quoted = text.split('`').skip(1).step_by(2);
        let named: Vec<_> = quoted.filter_map(|name| name.split_once("::")).collect();
        assert!(named.len() > 20, "{named:?}");
        for (module, test) in named {
            let is_there = source(module).contains(&format!("\"{test}\""));
            assert!(is_there, "there is no test {module}::{test}");
        }
    }

    /// All that the files of a module say.
    fn source(module: &str) -> String {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/integration");
        let below = fs::read_dir(here.join(module)).into_iter().flatten();
        let below = below.flatten().map(|entry| entry.path());
        let files = below.chain([here.join(format!("{module}.rs"))]);
        files
            .filter_map(|file| fs::read_to_string(file).ok())
            .collect()
    }

    #[test]
    fn every_part_is_in_a_suite_once() {
        for part in &PARTS {
            let names: Vec<_> = part.suites.iter().map(|suite| suite.name()).collect();
            let mut once = names.clone();
            once.dedup();
            assert!(!names.is_empty() && names == once, "{}", part.module);
        }
    }
}
