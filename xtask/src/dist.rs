//! `cargo xtask dist`: the packages, the container image, the bill of materials and the checksums of a release.
//!
//! freezer-guard/Cargo.toml lists the packed files, for cargo-deb. The RPM and the tarball have the files of
//! the Debian package, and the container image has some of them. All files are the same, byte for byte, whenever they are made of one commit by one
//! toolchain in one place.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    cross, git,
    machine::{self, Machine},
    run,
    setup::{self, Needs},
};

mod changelog;
mod check;
mod linked;
mod links;
mod manifest;
mod notices;
mod oci;
mod rpm;
mod sbom;
mod sums;
mod tarball;
mod time;
mod tree;

#[cfg(test)]
pub(crate) use oci::{image_name, is_in_image};

/// That of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Put the packages into this directory [default: target/dist, and target/dist-arm64 for arm64]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Make them for this machine [default: this one]
    #[arg(long, value_parser = machine::names())]
    arch: Option<String>,
    /// Check them: run lintian and rpmlint, install the RPM into a directory, read the container image,
    /// test links, checksums and Prometheus's rules, and compare the files of a second run
    #[arg(long)]
    check: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let machine = args
        .arch
        .as_deref()
        .map_or(Ok(Machine::host()), Machine::named)?;
    setup::setup(&Needs::default().with_release().with_machine(machine))?;
    build_for(machine)?;
    let stage = match &args.out {
        Some(dir) => Stage::open(dir, machine)?,
        None => Stage::open_default(machine)?,
    };
    for path in stage.make_all()? {
        println!("{}", path.display());
    }
    match args.check {
        true => check::all(&stage),
        false => Ok(()),
    }
}

/// Compiles what is packaged.
fn build_for(machine: &Machine) -> Result<()> {
    build::programs(Profile::Release, machine)?;
    if machine.is_foreign() {
        // It writes the man pages.
        build::programs(Profile::Release, Machine::host())?;
    }
    Ok(())
}

/// Makes and checks everything. Set-up has been done, and the programs are there.
pub(crate) fn check() -> Result<()> {
    let stage = Stage::open_default(Machine::host())?;
    stage.make_all()?;
    check::all(&stage)
}

/// The Debian package and the container image that are installed in guests of this machine.
pub(crate) fn packages_for_guests(machine: &'static Machine) -> Result<[PathBuf; 2]> {
    setup::setup(&Needs::default().with_package().with_machine(machine))?;
    build_for(machine)?;
    let stage = Stage::open_default(machine)?;
    stage.generate()?;
    Ok([stage.make_deb()?, oci::make(&stage)?])
}

/// A place where release files are made.
struct Stage {
    out: PathBuf,
    machine: &'static Machine,
    /// Seconds since 1970.
    time: String,
    /// Held as long as files are made: guests wait for their package.
    _lock: Option<File>,
}

impl Stage {
    fn open(out: &Path, machine: &'static Machine) -> Result<Self> {
        fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
        let lock =
            File::create(build::target_dir().join("dist.lock")).context("create the lock")?;
        lock.lock().context("lock target/dist.lock")?;
        Ok(Self {
            out: out.canonicalize()?,
            machine,
            time: time::of_sources()?,
            _lock: Some(lock),
        })
    }

    /// The same in another directory, under the lock of this one.
    fn again(&self, out: &Path) -> Result<Self> {
        Ok(Self {
            out: out.canonicalize()?,
            machine: self.machine,
            time: self.time.clone(),
            _lock: None,
        })
    }

    /// `target/dist`, or `target/dist-arm64`.
    fn open_default(machine: &'static Machine) -> Result<Self> {
        Self::open(&build::target_dir().join(machine.qualify("dist")), machine)
    }

    /// Makes the files of a release, and removes those of earlier ones.
    fn make_all(&self) -> Result<Vec<PathBuf>> {
        self.remove_old()?;
        self.generate()?;
        let mut files = vec![
            self.make_deb()?,
            rpm::make(self)?,
            tarball::make(self)?,
            oci::make(self)?,
            self.make_sbom()?,
        ];
        files.push(sums::write(&self.out, &files)?);
        Ok(files)
    }

    /// Removes packages of other versions: SHA256SUMS would lack them.
    fn remove_old(&self) -> Result<()> {
        for entry in fs::read_dir(&self.out)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ends = [".deb", ".rpm", ".tar.gz", ".oci.tar", ".cdx.json"];
            let is_package =
                name.starts_with("freezer-guard") && ends.iter().any(|end| name.ends_with(end));
            if is_package || name == sums::SHA256SUMS {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The directory where freezer-guard/Cargo.toml expects the generated files.
    fn generated_dir() -> PathBuf {
        build::target_dir().join("generated")
    }

    fn generated(name: &str) -> Result<String> {
        let path = Self::generated_dir().join(name);
        fs::read_to_string(path).with_context(|| format!("read target/generated/{name}"))
    }

    /// Writes man pages, completions, changelogs and notices.
    fn generate(&self) -> Result<()> {
        let dir = Self::generated_dir();
        // A subcommand that has gone would leave its page.
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        run(Command::new(build::freezer_guard(Machine::host()))
            .arg("generate")
            .arg(&dir))
        .context("write man pages and completions")?;
        let logs = changelog::Changelogs::read(&self.time)?;
        let linked = linked::Linked::find(self.machine)?;
        for (name, text) in [
            ("debian-changelog", logs.debian),
            ("rpm-changelog", logs.rpm),
            (
                "THIRD-PARTY-NOTICES",
                notices::text(&linked, &git::commit())?,
            ),
            (
                "rust-standard-library.html",
                notices::standard_library(&linked)?,
            ),
        ] {
            fs::write(dir.join(name), text).with_context(|| format!("write {name}"))?;
        }
        Ok(())
    }

    fn deb(&self) -> PathBuf {
        let machine = self.machine.name;
        self.out
            .join(format!("freezer-guard_{VERSION}_{machine}.deb"))
    }

    fn make_deb(&self) -> Result<PathBuf> {
        // A guest may be copying the old one.
        let unfinished = tempfile::Builder::new()
            .prefix(".unfinished-")
            .tempdir_in(&self.out)?;
        let path = unfinished.path().join("freezer-guard.deb");
        let mut cargo_deb = Command::new(setup::cargo_deb());
        if self.machine.is_foreign() {
            cross::strip_with(&mut cargo_deb, self.machine);
        }
        run(cargo_deb
            .current_dir(build::workspace())
            .args(["--quiet", "--package", "freezer-guard", "--locked"])
            .args(["--no-build", "--strip", "--target", self.machine.target])
            .arg("--output")
            .arg(&path)
            // It would tell the path, as we do.
            .stdout(Stdio::null())
            .env("CARGO_TARGET_DIR", build::target_dir())
            .env("SOURCE_DATE_EPOCH", &self.time))
        .context("make the package")?;
        fs::rename(path, self.deb())?;
        Ok(self.deb())
    }

    /// The bill of materials names the binary that is packed.
    fn make_sbom(&self) -> Result<PathBuf> {
        let tree = tempfile::tempdir()?;
        tree::unpack(&self.deb(), tree.path())?;
        let binary = tree.path().join("usr/bin/freezer-guard");
        let document = sbom::document(&linked::Linked::find(self.machine)?, &binary, &self.time)?;
        let path = self.out.join(format!("freezer-guard-{VERSION}.cdx.json"));
        fs::write(&path, document).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}
