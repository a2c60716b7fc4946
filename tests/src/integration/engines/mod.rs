//! runc, crun and podman: what they do with a guard is what they do without one, and
//! what gets in the way of a checkpoint of theirs does it no harm.
//!
//! Each trial prints rows for `docs/data/engines.md`.

pub(super) mod contained;
mod container;
mod life;
mod trouble;
mod violated;

use anyhow::Result;
use serde_json::json;

use super::{List, automatic::rpc, package, service::systemctl};
use container::Engine;

pub(super) fn list(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    let guest = format!("{} {}", list.config.kernel, list.config.cgroup.name());
    for engine in Engine::ALL {
        let guest = guest.clone();
        list.add(
            &format!("life_with_{}", engine.title().replace(' ', "_")),
            move |h| life::of(engine, h, &guest),
        );
    }
    for engine in Engine::ALL {
        list.add(
            &format!("violated_with_{}", engine.title().replace(' ', "_")),
            move |h| violated::of(engine, h),
        );
    }
    list.add("thousand_thaws_on_the_answer", |h| {
        Way::Automatic.prepare()?;
        rpc::thaws(h, 1000)
    });
    for engine in Engine::ALL {
        let guest = guest.clone();
        list.add(
            &format!("trouble_with_{}", engine.title().replace(' ', "_")),
            move |h| trouble::of(engine, h, &guest),
        );
    }
}

/// How an engine's checkpoint comes by its guard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Not at all.
    Bare,
    /// By `freezer-guard run --freeze`.
    Run,
    /// By the service, on its own.
    Automatic,
}

impl Way {
    const ALL: [Self; 3] = [Self::Bare, Self::Run, Self::Automatic];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "no guard",
            Self::Run => "`run --freeze`",
            Self::Automatic => "automatic",
        }
    }

    /// Starts or stops the service.
    fn prepare(self) -> Result<()> {
        package::ensure_installed()?;
        let verb = match self {
            Self::Bare => "stop",
            Self::Run | Self::Automatic => "start",
        };
        systemctl(&[verb, "freezer-guard.socket", "freezer-guard.service"])?.expect(0)?;
        Ok(())
    }
}

/// A row of a table for `docs/data/engines.md`, to be read by xtask.
fn say_row(table: &str, cells: &[&str]) {
    println!("\nruntimes: {}", json!({ "table": table, "cells": cells }));
}
