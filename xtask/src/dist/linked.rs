//! The software inside the binary: crates, the Rust standard library, glibc.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{
    build::{self, workspace},
    cross,
    debian::host_distribution,
    machine::Machine,
    toolchain,
};

/// The target of the BPF programs.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// The name and the version of a crate.
pub(super) type Key = (String, String);

/// A crate that is linked into the binary, or into the BPF object inside it.
pub(super) struct Crate {
    /// An SPDX expression.
    pub(super) licence: String,
    pub(super) repository: Option<String>,
    /// The SHA-256 of the crate's archive. The crates of this workspace have none.
    pub(super) checksum: Option<String>,
    /// The directory of its source.
    pub(super) source: PathBuf,
    /// The linked crates that it uses.
    pub(super) uses: BTreeSet<Key>,
}

/// Everything inside the binary.
pub(super) struct Linked {
    pub(super) crates: BTreeMap<Key, Crate>,
    /// As `rustc --version` has it: `1.95.0`.
    pub(super) rustc: String,
    /// The directory of this machine's own compiler, and of its documents. (Debian's, which compiles for
    /// other machines, comes without the texts of licences.)
    pub(super) sysroot: PathBuf,
    /// The version of the source package whose `libc.a` is linked.
    pub(super) glibc: String,
    /// The distribution that has this package: `debian`.
    pub(super) distribution: String,
}

impl Linked {
    /// Asks cargo, the compiler and dpkg.
    pub(super) fn find(machine: &Machine) -> Result<Self> {
        // One cargo command compiles these three, and chooses the features for all of them.
        let programs = [
            "freezer-guard",
            "freezer-guard-bench",
            "freezer-guard-tests",
        ];
        let mut keys = tree(&programs, &["--target", machine.target])?;
        let bpf = ["--target", BPF_TARGET, "--features", "bpf"];
        keys.extend(tree(&["freezer-guard-ebpf"], &bpf)?);
        let compiler = match machine.is_foreign() {
            true => toolchain::prebuilt_rustc(),
            false => "rustc".into(),
        };
        let rustc = output(Command::new(compiler).arg("--version"))?;
        let version = rustc.split(' ').nth(1).context("rustc has no version")?;
        Ok(Self {
            crates: describe(&keys, machine)?,
            rustc: version.to_owned(),
            sysroot: output(Command::new("rustc").args(["--print", "sysroot"]))?.into(),
            glibc: match machine.is_foreign() {
                true => cross::glibc(machine)?,
                false => output(
                    Command::new("dpkg-query")
                        .args(["--show", "--showformat=${source:Version}"])
                        .arg("libc6-dev"),
                )?,
            },
            distribution: host_distribution()?,
        })
    }
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .current_dir(workspace())
        .output()
        .with_context(|| format!("run {name}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {errors}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.trim_end().to_owned())
}

/// Returns the first package and the crates that get linked into it. The other packages matter for
/// the choice of features.
fn tree(packages: &[&str], arguments: &[&str]) -> Result<BTreeSet<Key>> {
    let mut cargo = build::cargo();
    cargo
        .args([
            "tree",
            "--locked",
            "--quiet",
            "--edges",
            "normal,no-proc-macro",
        ])
        .args(["--prefix", "depth", "--no-dedupe", "--format", " {p}"])
        .args(arguments);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let text = output(&mut cargo)?;
    let mut keys = BTreeSet::new();
    let mut is_first = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(depth), Some(name), Some(version)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if depth == "0" {
            is_first = name == packages[0];
        }
        if is_first {
            let version = version.trim_start_matches('v');
            keys.insert((name.to_owned(), version.to_owned()));
        }
    }
    ensure!(
        keys.len() > 1,
        "cargo tree says nothing about {}",
        packages[0]
    );
    Ok(keys)
}

/// A part of the output of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// `build` or `dev`; a normal dependency has none.
    kind: Option<String>,
}

impl Dependency {
    fn is_normal(&self) -> bool {
        self.dep_kinds.iter().any(|kind| kind.kind.is_none())
    }
}

/// A part of Cargo.lock.
#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Metadata {
    fn read(machine: &Machine) -> Result<Self> {
        let mut cargo = build::cargo();
        cargo
            .args(["metadata", "--locked", "--quiet", "--all-features"])
            .args(["--format-version=1"])
            .args(["--filter-platform", machine.target])
            .args(["--filter-platform", BPF_TARGET]);
        serde_json::from_str(&output(&mut cargo)?).context("parse cargo's metadata")
    }
}

impl Package {
    fn key(&self) -> Key {
        (self.name.clone(), self.version.clone())
    }
}

/// Returns the checksum of each crate in Cargo.lock that has one.
fn checksums() -> Result<BTreeMap<Key, String>> {
    let lock = fs::read_to_string(workspace().join("Cargo.lock")).context("read Cargo.lock")?;
    let lock: Lock = toml::from_str(&lock).context("parse Cargo.lock")?;
    let all = lock.package.into_iter();
    let known = all.filter_map(|package| {
        let key = (package.name, package.version);
        package.checksum.map(|checksum| (key, checksum))
    });
    Ok(known.collect())
}

fn describe(keys: &BTreeSet<Key>, machine: &Machine) -> Result<BTreeMap<Key, Crate>> {
    let Metadata { packages, resolve } = Metadata::read(machine)?;
    let checksums = checksums()?;
    let linked = packages
        .iter()
        .filter(|package| keys.contains(&package.key()));
    let ids: BTreeMap<&str, Key> = linked
        .clone()
        .map(|package| (&*package.id, package.key()))
        .collect();
    let nodes = resolve.nodes.iter();
    let uses: BTreeMap<&str, &Node> = nodes.map(|node| (&*node.id, node)).collect();
    let mut crates = BTreeMap::new();
    for package in linked {
        let node = uses
            .get(&*package.id)
            .context("cargo resolves each package")?;
        let used = node.deps.iter().filter(|dependency| dependency.is_normal());
        let source = package.manifest_path.parent();
        let found = Crate {
            licence: package
                .license
                .clone()
                .with_context(|| format!("the crate {} names no licence", package.name))?,
            repository: package.repository.clone(),
            checksum: checksums.get(&package.key()).cloned(),
            source: source.context("a manifest has a directory")?.to_owned(),
            uses: used
                .filter_map(|dependency| ids.get(&*dependency.pkg))
                .cloned()
                .collect(),
        };
        crates.insert(package.key(), found);
    }
    let missing = keys.iter().filter(|key| !crates.contains_key(*key));
    let missing: Vec<_> = missing.collect();
    ensure!(missing.is_empty(), "cargo's metadata has no {missing:?}");
    Ok(crates)
}

#[cfg(test)]
mod tests {
    use super::Linked;

    #[test]
    fn what_is_linked_is_found_and_nothing_else() {
        let linked = Linked::find(crate::machine::Machine::host()).expect("cargo knows it");
        let has = |name: &str| linked.crates.keys().any(|(found, _)| found == name);
        for name in [
            "freezer-guard",
            "freezer-guard-abi",
            "freezer-guard-ebpf",
            "aya-ebpf",
            "tokio",
        ] {
            assert!(has(name), "{name}");
        }
        for name in [
            "proptest",
            "clap_derive",
            "libtest-mimic",
            "xtask",
            "anyhow",
        ] {
            assert!(!has(name), "{name}");
        }
        let without_checksum = linked
            .crates
            .iter()
            .filter(|(_, krate)| krate.checksum.is_none());
        assert!(
            without_checksum
                .into_iter()
                .all(|((name, _), _)| name.starts_with("freezer-guard"))
        );
    }
}
