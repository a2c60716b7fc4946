//! Container engines: a guard changes nothing in their checkpoints, and an access in the middle of a
//! checkpoint does it no harm.
//!
//! Each trial prints rows for `docs/data/engines.md`.

mod attempt;
mod bare;
pub(super) mod contained;
mod container;
mod containerd;
mod cri;
mod docker;
mod ends;
mod engine;
mod image;
mod incus;
mod life;
mod lxc;
mod nspawn;
mod oci;
mod pod;
mod podman;
mod restart;
mod rootless;
mod session;
mod short;
mod tree;
mod trouble;
mod truth;
mod unit;
mod user;
mod violated;

use std::fs;

use anyhow::Result;
use serde_json::json;

use super::{List, automatic::rpc, package, service::systemctl};
use containerd::Containerd;
use cri::Cri;
use docker::Docker;
use engine::Engine;
use incus::Incus;
use lxc::Lxc;
use nspawn::Nspawn;
use oci::Oci;
use podman::Podman;
use session::Session;
use unit::Unit;

/// Every engine, in the order of the tables.
const ALL: [&dyn Engine; 13] = [
    &Oci::RUNC,
    &Oci::CRUN,
    &Oci::YOUKI,
    &Podman::WITH_RUNC,
    &Podman::WITH_CRUN,
    &Containerd,
    &Cri,
    &Docker,
    &Lxc,
    &Unit,
    &Session,
    &Nspawn,
    &Incus,
];

/// The engines that this guest has.
fn here() -> impl Iterator<Item = &'static dyn Engine> {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut lines = text.lines();
    let release = lines.find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = release.unwrap_or_default().to_owned();
    ALL.into_iter().filter(move |engine| engine.is_in(&release))
}

/// Its part of a test's name.
fn name(engine: &dyn Engine) -> String {
    engine.title().replace(' ', "_").replace('\'', "")
}

/// The short test of each engine that comes from Debian and starts within seconds. podman is tested
/// with the runtime that Debian gives it. Trees that root dumps by hand have longer tests only.
pub(super) fn list_short(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    let left_out = [Podman::WITH_RUNC.title(), Oci::YOUKI.title(), Incus.title()];
    let engines = here().filter(|engine| {
        !left_out.contains(&engine.title()) && engine.guarded_by() != tree::GUARDED
    });
    for engine in engines {
        list.add(&format!("short_with_{}", name(engine)), move |h| {
            short::of(engine, h)
        });
    }
}

pub(super) fn list(list: &mut List<'_>) {
    if !list.can_dump() {
        return;
    }
    let guest = format!("{} {}", list.config.kernel, list.config.cgroup.name());
    for engine in here() {
        let guest = guest.clone();
        list.add(&format!("life_with_{}", name(engine)), move |h| {
            life::of(engine, h, &guest)
        });
    }
    for engine in here() {
        list.add(&format!("violated_with_{}", name(engine)), move |h| {
            violated::of(engine, h)
        });
    }
    for engine in here() {
        let guest = guest.clone();
        list.add(&format!("trouble_with_{}", name(engine)), move |h| {
            trouble::of(engine, h, &guest)
        });
    }
    for engine in here() {
        let guest = guest.clone();
        list.add(
            &format!("trouble_without_a_guard_with_{}", name(engine)),
            move |h| bare::of(engine, h, &guest),
        );
    }
    for engine in here() {
        let guest = guest.clone();
        list.add(&format!("ends_with_{}", name(engine)), move |h| {
            ends::of(engine, h, &guest)
        });
    }
    // In parts, for no trial may take 20 minutes.
    for part in 1..=4 {
        list.add(&format!("thousand_thaws_on_the_answer_{part}"), |h| {
            Way::Automatic.prepare()?;
            rpc::thaws(h, 250)
        });
    }
    if rootless::is_here() {
        let guest = guest.clone();
        list.add("rootless_podman_refuses", move |_| {
            rootless::refuses(&guest)
        });
    }
    for engine in here().filter(|engine| engine.daemon().is_some()) {
        let guest = guest.clone();
        list.add(&format!("restart_of_{}", name(engine)), move |h| {
            restart::of(engine, h, &guest)
        });
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

    fn name(self, engine: &dyn Engine) -> &'static str {
        match self {
            Self::Bare => "no guard",
            Self::Run => engine.guarded_by(),
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
