//! The levels of a host's guards, decided from facts alone. A host finds the facts out when it loads
//! and attaches the programs; a maintainer has them in a file.

use std::io;

use freezer_guard_abi::Level;

use super::{
    Error,
    btf::Facts,
    prerequisites,
    programs::{self, Hierarchies, ITERATOR, Levels, Program},
};
use crate::quirks::KernelTypes;

/// The facts about a host on which the levels of its guards depend.
pub(crate) struct HostFacts<'a> {
    /// The types of its kernel. `None`: it has no BTF that can be read.
    pub(crate) types: Option<&'a dyn KernelTypes>,
    /// The active security modules, as `/sys/kernel/security/lsm` lists them. `None`: the list cannot be
    /// read.
    pub(crate) security_modules: Option<&'a str>,
    /// The modes of lockdown, with brackets around the one in force.
    pub(crate) lockdown: &'a str,
    /// Whether the kernel calls programs on functions (`kernel.ftrace_enabled`).
    pub(crate) function_tracing: bool,
    /// The hierarchies that are mounted.
    pub(crate) hierarchies: Hierarchies,
    /// Returns whether the kernel did not load, attach or call a program, as an attempt has shown.
    pub(crate) is_refused: &'a dyn Fn(&str) -> bool,
}

/// The levels, and what keeps them from being stronger.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    pub(crate) levels: Levels,
    pub(crate) reasons: Vec<Error>,
}

/// Returns whether the programs of this level include this one.
pub(crate) fn is_of_level(program: &str, level: Level) -> bool {
    programs::at(level).any(|one| one.name == program)
}

/// Decides how far each protection of guards goes on such a host.
pub(crate) fn decide(host: &HostFacts<'_>) -> Decision {
    decided(host).unwrap_or_else(|error| Decision {
        levels: Levels::default(),
        reasons: vec![error],
    })
}

/// The same.
///
/// # Errors
/// When the host can have no guard.
fn decided(host: &HostFacts<'_>) -> Result<Decision, Error> {
    if prerequisites::is_confidential(host.lockdown) {
        return Err(Error::LockedDown);
    }
    let types = host.types.ok_or(Error::NoTypes)?;
    let facts = Facts::look_up(types)?;
    if facts.target(ITERATOR).is_none() {
        return Err(Error::NoHook {
            program: freezer_guard_abi::names::MEMBERS_ITER,
            function: ITERATOR.to_owned(),
        });
    }
    if !host.function_tracing {
        return Err(Error::TracingOff);
    }
    let mut reasons = Vec::new();
    let mut level = Level::Enforce;
    let unknown = || prerequisites::no_modules(io::ErrorKind::NotFound.into());
    let modules = host.security_modules.ok_or_else(unknown)?;
    if let Some(inactive) = prerequisites::lsm_inactive_in(modules) {
        reasons.push(inactive);
        level = Level::BestEffort;
    }
    let attempt = |program: &Program, level| -> Result<(), Error> {
        program.attachment(level, &facts)?;
        match (host.is_refused)(program.name) {
            true => Err(Error::NotAttached(program.name)),
            false => Ok(()),
        }
    };
    if level == Level::BestEffort {
        let mut refusing = programs::at(level).filter(|program| program.modifies_return(level));
        if !refusing.any(|program| attempt(program, level).is_ok()) {
            level = Level::Detect;
        }
    }
    for program in programs::at(level).filter(|program| program.is_needed(host.hierarchies)) {
        match attempt(program, level) {
            Err(error) if program.is_vital() => return Err(error),
            result => reasons.extend(result.err()),
        }
    }
    let levels = programs::levels(level, host.hierarchies, |program| {
        attempt(program, level).is_ok()
    });
    Ok(Decision { levels, reasons })
}
