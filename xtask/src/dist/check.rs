//! The checks of the release files.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, links, oci, rpm, sums, tree};
use crate::{build::workspace, packaging_tools, run};

/// The name of a check, and the check.
type Check = (&'static str, fn(&Stage) -> Result<()>);

const CHECKS: [Check; 9] = [
    ("checksums", |stage| sums::check(&stage.out)),
    ("links of the packed texts", packed_links),
    ("lintian", lintian),
    ("rpmlint", rpmlint),
    ("the RPM's files", same_files),
    ("the RPM's installation", installs),
    ("the container image", oci::check::image),
    ("Prometheus's rules", |_| prometheus_rules()),
    ("a second run", reproducible),
];

/// Runs all of them. The error has a sentence for each that fails.
pub(super) fn all(stage: &Stage) -> Result<()> {
    let results = CHECKS.map(|(name, check)| {
        println!("dist: check: {name}");
        let start = Instant::now();
        let result = check(stage).map_err(|error| format!("{name}: {error:#}"));
        println!(
            "dist: check: {name}: {:.1} s",
            start.elapsed().as_secs_f64()
        );
        result
    });
    let complaints: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    ensure!(complaints.is_empty(), "{}", complaints.join("; "));
    Ok(())
}

fn packed_links(stage: &Stage) -> Result<()> {
    let tree = tempfile::tempdir()?;
    tree::unpack(&stage.deb(), tree.path())?;
    let documents = tree.path().join("usr/share/doc/freezer-guard");
    ensure!(
        documents.join("README.md").exists(),
        "README.md is not packed"
    );
    let dead = links::dead(&documents)?;
    ensure!(dead.is_empty(), "{}", dead.join("; "));
    Ok(())
}

fn lintian(stage: &Stage) -> Result<()> {
    run(packaging_tools::command(&stage.out, "lintian")
        .args(["--allow-root", "--tag-display-limit", "0"])
        .args(["--fail-on", "error,warning"])
        .arg(stage.deb().file_name().context("the package has a name")?))
    .context("see its report above")
}

fn rpmlint(stage: &Stage) -> Result<()> {
    let work = tempfile::tempdir()?;
    for path in [
        stage.out.join(rpm::file_name(stage.machine)),
        workspace().join("packaging/rpm/rpmlint.toml"),
    ] {
        let name = path.file_name().context("a file has a name")?;
        fs::copy(&path, work.path().join(name))
            .with_context(|| format!("copy {}", path.display()))?;
    }
    run(packaging_tools::command(work.path(), "rpmlint")
        .args(["--strict", "--config", "rpmlint.toml"])
        .arg(rpm::file_name(stage.machine)))
    .context("see its report above")
}

/// The files that only one of the packages has.
const DEBIAN_ONLY: [&str; 4] = [
    "usr/share/doc/freezer-guard/changelog.gz",
    "usr/share/doc/freezer-guard/copyright",
    "usr/share/lintian/overrides/freezer-guard",
    "usr/share/zsh/vendor-completions/_freezer-guard",
];
const RPM_ONLY: [&str; 2] = [
    "usr/lib/systemd/system-preset/90-freezer-guard.preset",
    "usr/share/zsh/site-functions/_freezer-guard",
];

fn same_files(stage: &Stage) -> Result<()> {
    let tree = tempfile::tempdir()?;
    tree::unpack(&stage.deb(), tree.path())?;
    let is_file = |path: &PathBuf| !tree.path().join(path).is_dir();
    let mut expected: BTreeSet<_> = tree::list(tree.path())?
        .into_iter()
        .filter(is_file)
        .collect();
    for name in DEBIAN_ONLY {
        ensure!(
            expected.remove(Path::new(name)),
            "the Debian package has no {name}"
        );
    }
    expected.extend(RPM_ONLY.map(PathBuf::from));
    let text = query(stage, "[%{FILEMODES:perms} %{FILENAMES}\n]")?;
    let files = text.lines().filter(|line| !line.starts_with('d'));
    let files = files.filter_map(|line| line.split_once(" /"));
    let found: BTreeSet<_> = files.map(|(_, path)| PathBuf::from(path)).collect();
    let different: Vec<_> = expected.symmetric_difference(&found).collect();
    ensure!(different.is_empty(), "only one package has {different:?}");
    Ok(())
}

/// Asks the RPM for some of its tags.
fn query(stage: &Stage, format: &str) -> Result<String> {
    let output = packaging_tools::command(&stage.out, "rpm")
        .args(["--query", "--package", "--queryformat", format])
        .arg(rpm::file_name(stage.machine))
        .output()
        .context("run rpm")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "rpm: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs rpm for the root in the work directory, whose scripts need devices and processes.
const IN_ROOT: &str = r#"
for dir in dev proc; do mount --rbind "/$dir" "root/$dir"; done
exec rpm --root="$PWD/root" "$@"
"#;

/// Installs the RPM into an empty root, upgrades it and removes it. Each of these runs its scripts.
fn installs(stage: &Stage) -> Result<()> {
    let work = tempfile::tempdir()?;
    let root = work.path().join("root");
    empty_root(&root)?;
    let package = rpm::file_name(stage.machine);
    fs::copy(stage.out.join(&package), work.path().join(&package))?;
    let rpm = |arguments: &[&str]| {
        let mut command = packaging_tools::command(work.path(), "sh");
        command.args(["-c", IN_ROOT, "sh"]).args(arguments);
        run(&mut command).with_context(|| format!("rpm {}", arguments.join(" ")))
    };
    let before: BTreeSet<_> = tree::list(&root)?.into_iter().collect();
    // No package of the root provides the shell of the scripts. There must be no other need.
    let needs = query(stage, "[%{REQUIRENAME}\n]")?;
    let is_known = |need: &str| need == "/bin/sh" || need.starts_with("rpmlib(");
    let more: Vec<_> = needs.lines().filter(|need| !is_known(need)).collect();
    ensure!(more.is_empty(), "it needs more than a shell: {more:?}");
    // rpm refuses a package for another machine.
    rpm(&["--install", "--test", "--nodeps", "--ignorearch", &package])?;
    rpm(&["--install", "--nodeps", "--ignorearch", &package])?;
    rpm(&["--verify", "--nodeps", "freezer-guard"])?;
    rpm(&[
        "--upgrade",
        "--replacepkgs",
        "--nodeps",
        "--ignorearch",
        &package,
    ])?;
    // The program cannot find out whether a cgroup is guarded, since this is no file system of BPF.
    let pins = root.join("sys/fs/bpf/freezer-guard");
    fs::create_dir_all(&pins)?;
    let refused = rpm(&["--erase", "freezer-guard"]);
    ensure!(
        refused.is_err(),
        "it was removed although a cgroup may be guarded"
    );
    rpm(&["--verify", "--nodeps", "freezer-guard"])?;
    fs::remove_dir_all(root.join("sys"))?;
    rpm(&["--erase", "freezer-guard"])?;
    let left: Vec<_> = tree::list(&root)?
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("freezer-guard"))
        .collect();
    ensure!(left.is_empty(), "its removal leaves {left:?}");
    let after: BTreeSet<_> = tree::list(&root)?.into_iter().collect();
    let gone: Vec<_> = before.difference(&after).collect();
    ensure!(gone.is_empty(), "its removal took {gone:?} away");
    Ok(())
}

/// A root with a shell and little more.
fn empty_root(root: &Path) -> Result<()> {
    let bin = root.join("usr/bin");
    for dir in [&bin, &root.join("dev"), &root.join("proc")] {
        fs::create_dir_all(dir)?;
    }
    symlink("usr/bin", root.join("bin"))?;
    let busybox = packaging_tools::dir().join("usr/bin/busybox");
    fs::copy(busybox, bin.join("busybox")).context("copy busybox")?;
    for name in ["sh", "rm"] {
        symlink("busybox", bin.join(name))?;
    }
    Ok(())
}

fn prometheus_rules() -> Result<()> {
    let rules = workspace().join("packaging/prometheus");
    for arguments in [
        [
            "check",
            "rules",
            "--lint=all",
            "--lint-fatal",
            "freezer-guard.rules.yml",
        ]
        .as_slice(),
        &["test", "rules", "freezer-guard.rules.test.yml"],
    ] {
        run(packaging_tools::command(&rules, "promtool").args(arguments))
            .context("see promtool's report above")?;
    }
    Ok(())
}

/// Makes everything once more and compares.
fn reproducible(stage: &Stage) -> Result<()> {
    let again = tempfile::tempdir()?;
    let files = stage.again(again.path())?.make_all()?;
    for file in files {
        let name = file.file_name().context("a file has a name")?;
        let same = run(Command::new("cmp").arg(&file).arg(stage.out.join(name)));
        same.with_context(|| format!("compare two runs: {}", name.display()))?;
    }
    Ok(())
}
