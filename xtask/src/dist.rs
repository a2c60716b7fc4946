//! `cargo xtask dist`: the Debian package, and a tarball of the same files.
//!
//! What is packed stands in freezer-guard/Cargo.toml, for cargo-deb; the tarball
//! is the package unpacked. Both are the same, byte for byte, whenever they are
//! made of one commit by one toolchain in one place.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    run,
    setup::{self, Needs},
};

/// That of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Put the packages into this directory [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    setup::setup(&Needs::default().with_package())?;
    let time = time_of_sources()?;
    let out = match &args.out {
        Some(dir) => dir.clone(),
        None => build::workspace().join("target/dist"),
    };
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let out = out.canonicalize()?;
    build::guest_programs(Profile::Release)?;
    let package = package(&out, &time)?;
    println!("{}", package.display());
    let tarball = tarball(&out, &package, &time)?;
    println!("{}", tarball.display());
    Ok(())
}

/// The package that is installed in guests.
pub(crate) fn package_for_guests() -> Result<PathBuf> {
    setup::setup(&Needs::default().with_package())?;
    let out = build::workspace().join("target/dist");
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    build::guest_programs(Profile::Release)?;
    package(&out, &time_of_sources()?)
}

/// Seconds since 1970: `$SOURCE_DATE_EPOCH`, as reproducible-builds.org has it,
/// else the time of the commit.
fn time_of_sources() -> Result<String> {
    if let Ok(time) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(time);
    }
    let output = Command::new("git")
        .current_dir(build::workspace())
        .args(["log", "-1", "--format=%ct"])
        .output()
        .context("run git")?;
    if !output.status.success() {
        bail!(
            "git cannot tell the time of this commit: set SOURCE_DATE_EPOCH to seconds since 1970"
        );
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Man pages and completions, where freezer-guard/Cargo.toml expects them.
fn generate() -> Result<()> {
    let dir = build::workspace().join("target/generated");
    // A subcommand that is no more leaves a page.
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    run(Command::new(build::freezer_guard())
        .arg("generate")
        .arg(&dir))
    .context("write man pages and completions")
}

fn package(out: &Path, time: &str) -> Result<PathBuf> {
    generate()?;
    let path = out.join(format!("freezer-guard_{VERSION}_amd64.deb"));
    run(Command::new(setup::cargo_deb())
        .current_dir(build::workspace())
        .args(["--quiet", "--package", "freezer-guard", "--locked"])
        .args(["--no-build", "--strip", "--target", build::TARGET])
        .arg("--output")
        .arg(&path)
        // It would tell the path, as we do.
        .stdout(Stdio::null())
        .env("CARGO_TARGET_DIR", build::target_dir())
        .env("SOURCE_DATE_EPOCH", time))
    .context("make the package")?;
    Ok(path)
}

fn tarball(out: &Path, package: &Path, time: &str) -> Result<PathBuf> {
    let name = format!("freezer-guard-{VERSION}-x86_64-linux");
    let path = out.join(format!("{name}.tar.gz"));
    let parent = tempfile::tempdir()?;
    let root = parent.path().join(&name);
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(package)
        .arg(&root))?;
    for file in ["README.md", "LICENSE-APACHE", "LICENSE-GPL2", "LICENSE-MIT"] {
        fs::copy(build::workspace().join(file), root.join(file))
            .with_context(|| format!("copy {file}"))?;
    }
    run(Command::new("tar")
        .args(["--create", "--sort=name", "--format=gnu"])
        .args(["--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mode=u=rwX,go=rX", &format!("--mtime=@{time}")])
        .args(["--use-compress-program", "gzip --no-name --best"])
        .arg("--file")
        .arg(&path)
        .arg("--directory")
        .arg(parent.path())
        .arg(&name))?;
    Ok(path)
}
