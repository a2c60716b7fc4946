//! Decides again, from the facts of a bundle, how far the guards of its host go.

use freezer_guard_abi::{Level, Protection};

use super::{Bundle, KernelFacts, Trial};
use crate::{
    guard::{call_result, chain},
    kernel::{
        CallResult, Hierarchies, RecordedTypes,
        decision::{Decision, HostFacts, decide, is_of_level},
    },
    quirks::KernelTypes,
};

/// What this version decides for the facts of a bundle.
#[derive(Debug, Clone)]
pub struct Replay {
    /// A row for each protection.
    pub rows: Vec<Row>,
    /// The reasons why the bundle holds no complete trial, so that not all facts are there for a decision.
    /// Empty: there is a decision.
    pub incomplete: Vec<String>,
    /// The reasons of the decision by all facts, or else by the kernel's types and settings.
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
    /// The level that follows if the kernel's answers to the attempts count too, or `None` if the bundle
    /// holds no complete trial.
    pub decided: Option<&'static str>,
}

impl Row {
    /// Returns whether the host had the level that this version decides for.
    pub fn agrees(&self) -> bool {
        self.decided == Some(self.recorded.as_str())
    }
}

impl Replay {
    /// Decides for the host of this bundle.
    pub fn of(bundle: &Bundle) -> Self {
        let promised = decision(bundle, &|_| false);
        let strongest = promised.levels.into_iter().max().flatten();
        // Without a level there is nothing to try out.
        let incomplete = strongest.map_or_else(Vec::new, |level| missing_trials(bundle, level));
        let decided = match incomplete.is_empty() {
            true => Some(decision(bundle, &|name| is_refused(bundle, name))),
            false => None,
        };
        let recorded = |protection: Protection| {
            let levels = bundle.levels.as_ref();
            let level = levels.and_then(|levels| levels.get(protection.name()));
            level.map_or_else(|| Level::name_of(None).to_owned(), Clone::clone)
        };
        let rows = Protection::ALL.into_iter().map(|protection| {
            let of = |decision: &Decision| Level::name_of(decision.levels[protection as usize]);
            Row {
                protection: protection.name(),
                recorded: recorded(protection),
                promised: of(&promised),
                decided: decided.as_ref().map(of),
            }
        });
        Self {
            rows: rows.collect(),
            incomplete,
            reasons: decided
                .as_ref()
                .unwrap_or(&promised)
                .reasons
                .iter()
                .map(|error| chain(error))
                .collect(),
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

/// Returns the reasons why the trials do not show how far guards go on a host whose types and settings
/// promise a level: in each mounted hierarchy a guard has to be tried out, with the strongest programs
/// that the kernel takes.
fn missing_trials(bundle: &Bundle, promised: Level) -> Vec<String> {
    let mounted = [("v1", bundle.cgroups.v1_freezer), ("v2", bundle.cgroups.v2)];
    let mounted = mounted.into_iter().filter(|(_, is_mounted)| *is_mounted);
    let why = |(name, _)| {
        let Some(trial) = bundle.trials.iter().find(|trial| trial.hierarchy == name) else {
            return Some(format!("no guard was tried out on {name}"));
        };
        match trial.loaded() {
            None if trial.levels.is_none() => Some(format!("the guard on {name} failed")),
            None => Some(format!("the level of the programs on {name} is not known")),
            Some(level) if trial.held && level < promised => Some(format!(
                "other guards kept the programs on {name} at the level {}",
                level.name()
            )),
            Some(_) => None,
        }
    };
    let reasons: Vec<_> = mounted.filter_map(why).collect();
    match bundle.trials.is_empty() && reasons.is_empty() {
        true => vec!["no guard was tried out".to_owned()],
        false => reasons,
    }
}

/// Returns whether the kernel has not loaded, attached or called this program, although a guard tried. The
/// programs of a level stronger than the loaded one are not in the list: the kernel takes none of them.
fn is_refused(bundle: &Bundle, name: &str) -> bool {
    match bundle.programs.iter().find(|program| program.name == name) {
        Some(program) => {
            !program.loaded || !program.attached || call_result(program) == CallResult::NeverCalled
        }
        None => {
            let loaded = bundle.trials.iter().find_map(Trial::loaded);
            loaded.is_some_and(|level| !is_of_level(name, level))
        }
    }
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
