//! Packages from Debian, unpacked and never installed.
//!
//! An apt of our own: its sources, lists and cache lie in our cache directory, its
//! idea of what is installed is empty, and the mirror is the one that the
//! machine's own apt is set up with. It needs no root and changes nothing of
//! the machine's.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cache, machine::Machine, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages on their way into [`NEXT`]. They need others of that.
pub(crate) const EXPERIMENTAL: &str = "experimental";
const NEXT: &str = "forky";

/// A private apt for one release of Debian and one machine.
pub(crate) struct Apt {
    dir: PathBuf,
    /// Locked, so that a second thread waits instead of failing.
    _lock: File,
}

impl Apt {
    /// Opens it and fetches the package lists when they are not there yet.
    pub(crate) fn open(release: &str, machine: &Machine) -> Result<Self> {
        let dir = cache::dir().join("apt").join(machine.qualify(release));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let lock = File::create(dir.join("lock"))?;
        lock.lock()
            .with_context(|| format!("lock {}", dir.display()))?;
        let apt = Self { dir, _lock: lock };
        if !apt.dir.join("updated").is_file() {
            apt.update(release, machine)
                .with_context(|| format!("download the package lists of Debian {release}"))?;
        }
        Ok(apt)
    }

    fn update(&self, release: &str, machine: &Machine) -> Result<()> {
        let dir = self.dir.display();
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(folder))?;
        }
        fs::write(self.dir.join("status"), "")?;
        let (main, security) = mirrors()?;
        let source =
            |site: &str, suite: &str| format!("deb [signed-by={KEYRING}] {site} {suite} main\n");
        let mut sources = vec![source(&main, release)];
        let mut preferred = String::new();
        if release == EXPERIMENTAL {
            sources.push(source(&main, NEXT));
            // apt takes nothing from there otherwise.
            preferred = format!("APT::Default-Release \"{release}\";\n");
        } else if !release.ends_with("-backports") {
            sources.push(source(&main, &format!("{release}-updates")));
            sources.push(source(&security, &format!("{release}-security")));
        }
        fs::write(self.dir.join("sources.list"), sources.concat())?;
        fs::write(
            self.dir.join("apt.conf"),
            format!(
                "Dir::State \"{dir}/state\";\n\
                 Dir::State::status \"{dir}/status\";\n\
                 Dir::Cache \"{dir}/cache\";\n\
                 Dir::Etc::SourceList \"{dir}/sources.list\";\n\
                 Dir::Etc::SourceParts \"/dev/null\";\n\
                 Dir::Etc::PreferencesParts \"/dev/null\";\n\
                 APT::Architecture \"{0}\";\n\
                 APT::Architectures {{ \"{0}\"; }};\n\
                 APT::Sandbox::User \"root\";\n\
                 APT::Install-Recommends \"false\";\n{preferred}\
                 Acquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n",
                machine.name
            ),
        )?;
        run(self.command("apt-get").args(["-qq", "update"]))?;
        fs::write(self.dir.join("updated"), "")?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// The answer of `apt-cache`.
    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("apt-cache");
        let output = command.args(arguments).output();
        let output = output.context("run apt-cache")?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The newest of the packages whose names match the regular expression.
    pub(crate) fn newest(&self, regex: &str) -> Result<String> {
        let output = self.ask(&["search", "--names-only", regex])?;
        output
            .lines()
            .filter_map(|line| line.split_once(" - ").map(|(name, _)| name))
            .max_by_key(|name| numbers(name))
            .map(str::to_owned)
            .with_context(|| {
                format!(
                    "no package of this release matches {regex}: if there is a newer list, remove {} and try again",
                    self.dir.display()
                )
            })
    }

    /// The version of a package.
    pub(crate) fn version(&self, package: &str) -> Result<String> {
        let output = self.ask(&["show", "--no-all-versions", package])?;
        let mut lines = output.lines();
        lines
            .find_map(|line| line.strip_prefix("Version: "))
            .map(str::to_owned)
            .with_context(|| format!("this release has no package {package}"))
    }

    /// Whether there is a package with this name.
    pub(crate) fn has(&self, package: &str) -> bool {
        self.command("apt-cache")
            .args(["show", package])
            .output()
            .is_ok_and(|output| output.status.success())
    }

    /// Downloads these packages, without what they depend on, and unpacks them.
    pub(crate) fn unpack<S: AsRef<OsStr>>(&self, packages: &[S], into: &Path) -> Result<()> {
        let downloads = tempfile::tempdir_in(&self.dir)?;
        run(self
            .command("apt-get")
            .args(["-qq", "download"])
            .args(packages)
            .current_dir(downloads.path()))?;
        for entry in fs::read_dir(downloads.path())? {
            unpack(&entry?.path(), into)?;
        }
        Ok(())
    }

    /// Downloads these packages and all that they depend on, and unpacks them.
    pub(crate) fn unpack_closure(&self, packages: &[&str], into: &Path) -> Result<()> {
        run(self.command("apt-get").arg("clean"))?;
        run(self
            .command("apt-get")
            .args(["-qq", "-y", "--download-only", "install"])
            .args(packages))?;
        let archives = self.dir.join("cache/archives");
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                unpack(&path, into)?;
            }
        }
        run(self.command("apt-get").arg("clean"))
    }
}

/// Unpacks one package. Unlike `dpkg-deb -x` it follows links such as `lib` to
/// `usr/lib`.
fn unpack(package: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("run dpkg-deb")?;
    let stdout = archive
        .stdout
        .take()
        .context("dpkg-deb's output is a pipe")?;
    run(Command::new("tar")
        .args([
            "--extract",
            "--keep-directory-symlink",
            "--no-same-owner",
            "--directory",
        ])
        .arg(into)
        .stdin(stdout))?;
    ensure!(
        archive.wait()?.success(),
        "dpkg-deb cannot read {}",
        package.display()
    );
    Ok(())
}

/// All numbers in a name, for an order by version: `6.1.0-50` is newer than `6.1.0-9`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The machine's own mirrors: of the archive and of its security updates.
fn mirrors() -> Result<(String, String)> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(RELEASE)"])
        .output()
        .context("run apt-get: the set-up needs Debian 12 or later, or another system with apt and Debian's sources")?;
    let output = String::from_utf8(output.stdout)?;
    let targets: Vec<_> = output
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    for (security, release) in &targets {
        let Some(release) = release.strip_suffix("-security") else {
            continue;
        };
        if let Some((main, _)) = targets.iter().find(|(_, other)| *other == release) {
            return Ok(((*main).to_owned(), (*security).to_owned()));
        }
    }
    bail!(
        "apt has no Debian release with its security updates: \
         add both to /etc/apt/sources.list and run `apt-get update`"
    )
}

/// The machine's own release (`bookworm`): its libraries fit the machine's programs.
pub(crate) fn host_release() -> Result<String> {
    os_release("VERSION_CODENAME")
}

/// The machine's own distribution (`debian`).
pub(crate) fn host_distribution() -> Result<String> {
    os_release("ID")
}

fn os_release(key: &str) -> Result<String> {
    let os_release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(found, _)| *found == key)
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .with_context(|| format!("/etc/os-release has no {key}"))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn later_versions_are_newer() {
        assert!(
            numbers("linux-image-6.1.0-50-cloud-amd64")
                > numbers("linux-image-6.1.0-9-cloud-amd64")
        );
        assert!(
            numbers("linux-image-6.12.117+deb13-cloud")
                > numbers("linux-image-6.12.95+deb13-cloud")
        );
    }
}
