//! The RPM: the files of the Debian package, at the paths of distributions with rpm.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    Stage, VERSION,
    manifest::{LICENCE, Manifest},
    tree,
};
use crate::{
    build::workspace,
    machine::Machine,
    packaging_tools::{self, WORK},
    run,
};

/// The name of the package's file.
pub(super) fn file_name(machine: &Machine) -> String {
    format!("freezer-guard-{VERSION}-1.{}.rpm", machine.uname)
}

/// Makes the RPM in `stage.out`.
pub(super) fn make(stage: &Stage) -> Result<PathBuf> {
    let work = tempfile::tempdir()?;
    let top = work.path();
    let tree = top.join("tree");
    tree::unpack(&stage.deb(), &tree)?;
    adapt(&tree)?;
    let sources = top.join("sources");
    fs::create_dir(&sources)?;
    let manifest = Manifest::read()?;
    for (name, text) in [
        ("description", manifest.extended_description.clone()),
        ("files", file_list(&tree)?),
        ("removal", removal()?),
        ("changelog", Stage::generated("rpm-changelog")?),
    ] {
        fs::write(sources.join(name), text).with_context(|| format!("write {name}"))?;
    }
    fs::copy(
        workspace().join("packaging/rpm/freezer-guard.spec"),
        top.join("freezer-guard.spec"),
    )?;
    rpmbuild(top, &manifest, stage)?;
    let path = stage.out.join(file_name(stage.machine));
    fs::copy(top.join("out").join(file_name(stage.machine)), &path).context("find the RPM")?;
    Ok(path)
}

/// Moves, removes and adds the files that differ from Debian's.
fn adapt(tree: &Path) -> Result<()> {
    let share = tree.join("usr/share");
    // Debian's zsh has a directory of its own for completions of packages.
    let completions = share.join("zsh/site-functions");
    fs::rename(share.join("zsh/vendor-completions"), completions)?;
    tree::remove_debians_own(tree)?;
    // Debian's scripts enable each new unit. On other distributions a preset does.
    let presets = tree.join("usr/lib/systemd/system-preset");
    fs::create_dir_all(&presets)?;
    let preset = "90-freezer-guard.preset";
    let source = workspace().join("packaging/rpm").join(preset);
    fs::copy(source, presets.join(preset)).with_context(|| format!("copy {preset}"))?;
    Ok(())
}

/// The list of files for the specification. The package owns the directories that are its alone.
fn file_list(tree: &Path) -> Result<String> {
    let mut list = String::new();
    for path in tree::list(tree)? {
        let is_dir = tree.join(&path).is_dir();
        let name = path.display();
        let is_ours = path
            .components()
            .any(|part| part.as_os_str() == "freezer-guard");
        let kind = match () {
            () if is_dir && !is_ours => continue,
            () if is_dir => "%dir ",
            () if path.starts_with("etc") => "%config(noreplace) ",
            () if is_licence(&path) => "%license ",
            () if path.starts_with("usr/share/doc") || path.starts_with("usr/share/man") => "%doc ",
            () => "",
        };
        list += &format!("{kind}\"/{name}\"\n");
    }
    Ok(list)
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b"LICENSE-") || name == b"THIRD-PARTY-NOTICES"
}

/// Debian's removal script, with RPM's way to stop the units.
fn removal() -> Result<String> {
    let read = |name: &str| {
        let path = workspace().join("packaging").join(name);
        fs::read_to_string(path).with_context(|| format!("read {name}"))
    };
    let script = read("debian/prerm")?;
    let (before, after) = script
        .split_once("#DEBHELPER#\n")
        .context("debian/prerm has no line #DEBHELPER#")?;
    Ok(format!("{before}{}{after}", read("rpm/stop.sh")?))
}

fn rpmbuild(top: &Path, manifest: &Manifest, stage: &Stage) -> Result<()> {
    let inside = |path: &str| format!("{WORK}/{path}");
    let mut command = packaging_tools::command(top, "rpmbuild");
    for (name, value) in [
        ("_topdir", inside("build")),
        ("_sourcedir", inside("sources")),
        ("_rpmdir", inside("out")),
        (
            "_build_name_fmt",
            "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm".to_owned(),
        ),
        // Every rpm since 2018 reads zstd.
        ("_binary_payload", "w19.zstdio".to_owned()),
        // The same commit gives the same bytes.
        ("_buildhost", "localhost".to_owned()),
        ("use_source_date_epoch_as_buildtime", "1".to_owned()),
        (
            "build_mtime_policy",
            "clamp_to_source_date_epoch".to_owned(),
        ),
        ("source_date_epoch_from_changelog", "0".to_owned()),
        ("tree", inside("tree")),
        ("version", VERSION.to_owned()),
        ("summary_line", manifest.description.clone()),
        ("licence", LICENCE.to_owned()),
        ("maintainer", manifest.maintainer.clone()),
    ] {
        command.arg("--define").arg(format!("{name} {value}"));
    }
    command
        .args([
            "--quiet",
            "--target",
            &format!("{}-linux", stage.machine.uname),
            "-bb",
            "freezer-guard.spec",
        ])
        .env("SOURCE_DATE_EPOCH", &stage.time);
    run(&mut command).context("make the RPM")
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, process::Command};

    use super::*;

    /// Writes down its calls. Only the service is active.
    const SYSTEMCTL: &str = r#"#!/bin/sh
echo "systemctl $*" >>"$LOG"
case $* in
"is-active freezer-guard.service") echo active ;;
is-active*) echo inactive; exit 3 ;;
esac
"#;
    const FREEZER_GUARD: &str = r#"#!/bin/sh
echo "freezer-guard $*" >>"$LOG"
case $1 in
status) echo '{"guards":[]}' ;;
unload) exit "$UNLOADED" ;;
esac
"#;

    /// Runs the removal script where `unload` exits with this code. Returns whether the script
    /// succeeds, and the calls that change something.
    fn remove(unloaded: &str) -> Result<(bool, Vec<String>)> {
        let dir = tempfile::tempdir()?;
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin)?;
        for (name, text) in [("systemctl", SYSTEMCTL), ("freezer-guard", FREEZER_GUARD)] {
            fs::write(bin.join(name), text)?;
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let mut script = removal()?;
        for path in ["/sys/fs/bpf/freezer-guard", "/run/systemd/system"] {
            let inside = format!("{}{path}", dir.path().display());
            fs::create_dir_all(&inside)?;
            assert!(script.contains(path), "{path} is not in the script");
            script = script.replace(path, &inside);
        }
        let log = dir.path().join("log");
        let status = Command::new("sh")
            .args(["-c", &script, "sh", "remove"])
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("LOG", &log)
            .env("UNLOADED", unloaded)
            .status()?;
        let calls = fs::read_to_string(log)?;
        let changes = |call: &&str| !call.contains(" is-active ") && !call.contains(" status");
        let calls = calls.lines().filter(changes).map(str::to_owned).collect();
        Ok((status.success(), calls))
    }

    const UNITS: &str = "freezer-guard.service freezer-guard.socket freezer-guard-metrics.socket";
    const UNLOAD: &str = "freezer-guard unload";

    #[test]
    fn a_removal_disables_the_units_at_its_end() -> Result<()> {
        let (is_removed, calls) = remove("0")?;
        let stop = format!("systemctl stop {UNITS}");
        let disable = format!("systemctl --no-reload disable {UNITS}");
        assert!(is_removed);
        assert_eq!(calls, [stop, UNLOAD.to_owned(), disable]);
        Ok(())
    }

    #[test]
    fn a_refused_removal_leaves_the_units_as_they_were() -> Result<()> {
        let (is_removed, calls) = remove("75")?;
        assert!(!is_removed);
        let stop = format!("systemctl stop {UNITS}");
        let start = "systemctl start freezer-guard.service".to_owned();
        assert_eq!(calls, [stop, UNLOAD.to_owned(), start]);
        Ok(())
    }
}
