//! Decides again, from the facts of a bundle, how far the guards of its host go.

use freezer_guard_abi::{Level, Protection};

use super::{Bundle, KernelFacts};
use crate::{
    guard::{call_result, chain},
    kernel::{
        CallResult, Hierarchies, ProgramReport, RecordedTypes,
        decision::{Decision, HostFacts, decide},
    },
    quirks::KernelTypes,
};

/// What this version decides for the facts of a bundle.
#[derive(Debug, Clone)]
pub struct Replay {
    /// A row for each protection.
    pub rows: Vec<Row>,
    /// The reasons of the decision by all facts.
    pub reasons: Vec<String>,
    /// The fields, constants and functions that the kernel lacks.
    pub missing: Vec<String>,
}

/// The level of a protection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The name of the protection.
    pub protection: &'static str,
    /// The level that the host had.
    pub recorded: String,
    /// The level that the kernel's types and settings promise.
    pub promised: &'static str,
    /// The level that follows if the kernel's answers to the attempts count too.
    pub decided: &'static str,
}

impl Row {
    /// Returns whether the host had the level that this version decides for.
    pub fn agrees(&self) -> bool {
        self.recorded == self.decided
    }
}

impl Replay {
    /// Decides for the host of this bundle.
    pub fn of(bundle: &Bundle) -> Self {
        let promised = decision(bundle, &|_| false);
        let decided = decision(bundle, &|name| is_refused(&bundle.programs, name));
        let recorded = |protection: Protection| {
            let levels = bundle.levels.as_ref();
            let level = levels.and_then(|levels| levels.get(protection.name()));
            level.map_or_else(|| Level::name_of(None).to_owned(), Clone::clone)
        };
        let levels = promised.levels.into_iter().zip(decided.levels);
        let rows = Protection::ALL.into_iter().zip(levels);
        Self {
            rows: rows
                .map(|(protection, (promised, decided))| Row {
                    protection: protection.name(),
                    recorded: recorded(protection),
                    promised: Level::name_of(promised),
                    decided: Level::name_of(decided),
                })
                .collect(),
            reasons: decided.reasons.iter().map(|error| chain(error)).collect(),
            missing: bundle.kernel.types.as_ref().map_or_else(Vec::new, missing),
        }
    }

    /// Returns whether the host had the levels that this version decides for.
    pub fn agrees(&self) -> bool {
        self.rows.iter().all(Row::agrees)
    }
}

fn decision(bundle: &Bundle, is_refused: &dyn Fn(&str) -> bool) -> Decision {
    let KernelFacts {
        types,
        security_modules,
        lockdown,
        function_tracing,
        ..
    } = &bundle.kernel;
    let types: Option<&RecordedTypes> = types.as_ref();
    decide(&HostFacts {
        types: types.map(|types| types as &dyn KernelTypes),
        security_modules: security_modules.as_deref(),
        lockdown,
        function_tracing: *function_tracing,
        hierarchies: Hierarchies {
            v1: bundle.cgroups.v1_freezer,
            v2: bundle.cgroups.v2,
        },
        is_refused,
    })
}

/// Returns whether the kernel has not loaded, attached or called this program, although a guard tried.
fn is_refused(programs: &[ProgramReport], name: &str) -> bool {
    let program = programs.iter().find(|program| program.name == name);
    program.is_some_and(|program| {
        !program.loaded || !program.attached || call_result(program) == CallResult::NeverCalled
    })
}

/// The names of the fields, constants and functions that a kernel lacks.
fn missing(types: &RecordedTypes) -> Vec<String> {
    let all = [&types.fields, &types.constants, &types.targets].into_iter();
    all.flatten()
        .filter(|(_, found)| found.is_none())
        .map(|(name, _)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests;
