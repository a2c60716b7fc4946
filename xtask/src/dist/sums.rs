//! Checksums, by sha256sum(1).

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::run;

/// The file's name.
pub(super) const SHA256SUMS: &str = "SHA256SUMS";

/// Returns the SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let line = sha256sum(Path::new("/"), [path.as_os_str()])?;
    let (sum, _) = line
        .split_once(' ')
        .context("sha256sum prints a sum and a name")?;
    Ok(sum.to_owned())
}

fn sha256sum<'a>(dir: &Path, names: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
    let output = Command::new("sha256sum")
        .current_dir(dir)
        .args(names)
        .output()
        .context("run sha256sum")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sha256sum: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Writes the file with the sums of these files, which lie in `dir`.
pub(super) fn write(dir: &Path, files: &[PathBuf]) -> Result<PathBuf> {
    let mut names: Vec<_> = files.iter().filter_map(|file| file.file_name()).collect();
    names.sort();
    let path = dir.join(SHA256SUMS);
    fs::write(&path, sha256sum(dir, names)?).with_context(|| format!("write {SHA256SUMS}"))?;
    Ok(path)
}

/// Fails if a sum is wrong, or if a file of the directory has none.
pub(super) fn check(dir: &Path) -> Result<()> {
    run(Command::new("sha256sum")
        .current_dir(dir)
        .args(["--check", "--strict", "--quiet", SHA256SUMS]))?;
    let text = fs::read_to_string(dir.join(SHA256SUMS))?;
    let mut summed: Vec<_> = text
        .lines()
        .filter_map(|line| line.split("  ").nth(1))
        .collect();
    summed.push(SHA256SUMS);
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let has_sum = summed.iter().any(|summed| name == **summed);
        ensure!(has_sum, "{} has no line in {SHA256SUMS}", name.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{check, write};

    #[test]
    fn a_changed_file_and_a_file_without_a_sum_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a");
        fs::write(&file, "one").expect("a file");
        write(dir.path(), std::slice::from_ref(&file)).expect("sums");
        check(dir.path()).expect("they are right");
        fs::write(&file, "two").expect("a file");
        check(dir.path()).expect_err("it has changed");
        fs::write(&file, "one").expect("a file");
        fs::write(dir.path().join("b"), "").expect("a file");
        check(dir.path()).expect_err("b has no sum");
    }
}
