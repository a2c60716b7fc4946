//! The guest's two root file systems, made of one set of Debian's packages.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{BufWriter, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};
use lddtree::DependencyAnalyzer;

use crate::{
    cache,
    config::Cgroup,
    debian::{self, Apt},
    machine::{AMD64, ARM64, Machine},
    run, tools,
};

/// The release of Debian that a guest's programs come from, for one machine.
pub(crate) struct Userland {
    release: &'static str,
    pub(crate) machine: &'static Machine,
    /// What it has besides [`PACKAGES`].
    more_packages: &'static [&'static str],
    /// What only this release has.
    own_packages: &'static [&'static str],
    /// What its systemd can mount.
    pub(crate) layouts: &'static [Cgroup],
}

/// CRIU 3.17.1, and a systemd that still has all three cgroup layouts. Its crun is
/// built without libcriu, which it has not.
pub(crate) static BOOKWORM: Userland = Userland {
    release: "bookworm",
    machine: &AMD64,
    more_packages: &[],
    own_packages: &[],
    layouts: &[Cgroup::Hybrid, Cgroup::V2],
};
/// CRIU 4.1.1: the older one does not start on 6.18.
pub(crate) static TRIXIE: Userland = Userland {
    release: "trixie",
    machine: &AMD64,
    more_packages: &WITH_DAEMONS,
    own_packages: &[],
    layouts: &[Cgroup::V2],
};
/// CRIU 4.2 or later: the next release, which still moves.
pub(crate) static FORKY: Userland = Userland {
    release: "forky",
    machine: &AMD64,
    more_packages: &WITH_DAEMONS,
    own_packages: &ONLY_NEWEST,
    layouts: &[Cgroup::V2],
};
/// CRIU 4.3 or later, runc 1.4, podman 6: programs on their way into the next release, which may be
/// broken.
pub(crate) static EXPERIMENTAL: Userland = Userland {
    release: debian::EXPERIMENTAL,
    machine: &AMD64,
    more_packages: &WITH_DAEMONS,
    own_packages: &ONLY_NEWEST,
    layouts: &[Cgroup::V2],
};
pub(crate) static TRIXIE_ARM64: Userland = Userland {
    machine: &ARM64,
    ..TRIXIE
};
/// Each change boots it, so it has no engines with a daemon: these are the most to download.
pub(crate) static FORKY_ARM64: Userland = Userland {
    machine: &ARM64,
    more_packages: &[],
    own_packages: &[],
    ..FORKY
};
pub(crate) static USERLANDS: [&Userland; 6] = [
    &BOOKWORM,
    &TRIXIE,
    &FORKY,
    &EXPERIMENTAL,
    &TRIXIE_ARM64,
    &FORKY_ARM64,
];

/// What the guest's root is made of; their dependencies come with them.
const PACKAGES: [&str; 26] = [
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "coreutils",
    "criu",
    "crun",
    "dbus",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "init-system-helpers",
    "iproute2",
    "libc-bin",
    "perl-base",
    "podman",
    "procps",
    "runc",
    "sed",
    "strace",
    "systemd",
    "systemd-sysv",
    "tar",
    "util-linux",
];

/// crun's library for CRIU, and the engines that only newer releases have with a CRIU that
/// serves them. All of them add 60 to 90 MB to the download.
const WITH_DAEMONS: [&str; 8] = [
    "libcriu2",
    "containerd",
    "docker.io",
    "docker-cli",
    "lxc",
    "dbus-user-session",
    "libpam-systemd",
    "uidmap",
];

/// Incus without its virtual machines, which adds 40 MB to the download and 145 MB to the disk, and
/// systemd-nspawn, whose older containers CRIU cannot restore.
const ONLY_NEWEST: [&str; 2] = ["incus-base", "systemd-container"];

/// The programs of the initramfs, besides busybox.
const PROGRAMS: [&str; 4] = [
    "usr/sbin/criu",
    "usr/bin/strace",
    "usr/bin/bash",
    "usr/bin/busybox",
];

/// Raise it when the way an image is made changes.
const RECIPE: u32 = 6;

impl Userland {
    /// The release's name, and the machine's.
    pub(crate) fn name(&self) -> String {
        self.machine.qualify(self.release)
    }

    /// The directory the packages are unpacked into.
    pub(crate) fn packages(&self) -> PathBuf {
        self.versioned("packages", "")
    }

    /// The archive with the root of `--image initramfs`.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.versioned("initramfs", ".cpio")
    }

    /// The disk with the root of `--image systemd`.
    pub(crate) fn disk(&self) -> PathBuf {
        self.versioned("systemd", ".ext4")
    }

    /// A path in the cache that changes with what the images are made of.
    fn versioned(&self, name: &str, extension: &str) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        (PACKAGES, self.more_packages, PROGRAMS, RECIPE).hash(&mut hasher);
        self.own_packages
            .iter()
            .for_each(|name| name.hash(&mut hasher));
        let version = hasher.finish() & 0xffff_ffff;
        cache::dir()
            .join("images")
            .join(format!("{}-{name}-{version:08x}{extension}", self.name()))
    }

    pub(crate) fn fetch_packages(&self) -> Result<()> {
        let apt = Apt::open(self.release, self.machine)?;
        cache::put(&self.packages(), |root| {
            for name in ["bin", "sbin", "lib", "lib64"] {
                fs::create_dir_all(root.join("usr").join(name))?;
                symlink(format!("usr/{name}"), root.join(name))?;
            }
            let packages = [&PACKAGES, self.more_packages, self.own_packages];
            apt.unpack_closure(&packages.concat(), root)?;
            configure(root)
        })
    }
}

/// What the packages' maintainer scripts would have done, as far as it matters.
fn configure(root: &Path) -> Result<()> {
    for (file, master) in [("passwd", "passwd.master"), ("group", "group.master")] {
        fs::copy(
            root.join("usr/share/base-passwd").join(master),
            root.join("etc").join(file),
        )?;
    }
    for (file, text) in [
        ("etc/machine-id", ""),
        ("etc/hostname", "guest\n"),
        ("etc/fstab", ""),
        // Engines give their containers copies of these.
        ("etc/hosts", "127.0.0.1 localhost guest\n"),
        ("etc/resolv.conf", ""),
        (
            "usr/lib/sysusers.d/guest-dbus.conf",
            "u messagebus - - /nonexistent\n",
        ),
        // Its socket belongs to this group.
        ("usr/lib/sysusers.d/guest-docker.conf", "g docker -\n"),
    ] {
        fs::write(root.join(file), text).with_context(|| format!("write {file}"))?;
    }
    let sh = root.join("usr/bin/sh");
    if !sh.exists() {
        symlink("bash", sh)?;
    }
    Ok(fs::create_dir_all(root.join("guest"))?)
}

/// An archive in the format of an initramfs.
pub(crate) struct Archive {
    file: BufWriter<File>,
}

impl Archive {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            file: BufWriter::new(file),
        })
    }

    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32, bytes: &[u8]) -> Result<()> {
        let builder = Builder::new(name)
            .mode(mode)
            .set_mode_file_type(kind)
            .nlink(1);
        let size = u32::try_from(bytes.len()).context("a file of 4 GiB or more")?;
        let mut writer = builder.write(&mut self.file, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }

    pub(crate) fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, ModeFileType::Directory, 0o755, &[])
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, ModeFileType::Symlink, 0o777, target.as_bytes())
    }

    pub(crate) fn bytes(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.entry(name, ModeFileType::Regular, mode, bytes)
    }

    /// Adds a file of the host's with its permissions.
    pub(crate) fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
        self.bytes(name, mode, &bytes)
    }

    /// Adds the directories above `name`.
    pub(crate) fn parents(&mut self, name: &str) -> Result<()> {
        for (end, _) in name.match_indices('/').filter(|(end, _)| *end > 0) {
            self.folder(&name[..end])?;
        }
        Ok(())
    }

    /// Adds another archive as it is. The kernel reads one after the other.
    pub(crate) fn append(mut self, archive: &Path) -> Result<()> {
        self.file = trailer(self.file)?;
        let mut other =
            File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        std::io::copy(&mut other, &mut self.file)?;
        Ok(self.file.flush()?)
    }

    pub(crate) fn finish(self) -> Result<()> {
        Ok(trailer(self.file)?.flush()?)
    }
}

impl Userland {
    /// The programs with their libraries. The guest's init gives busybox its other names.
    pub(crate) fn make_initramfs(&self) -> Result<()> {
        let root = self.packages();
        let libraries = format!("usr/lib/{}", self.machine.libraries);
        let loader = format!("usr/{}", self.machine.loader);
        let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
        for program in PROGRAMS {
            let source = root.join(program);
            let tree = DependencyAnalyzer::new(root.clone())
                .add_library_path(root.join(&libraries))
                .analyze(&source)
                .with_context(|| format!("find the libraries of {}", source.display()))?;
            files.insert(program.to_owned(), source);
            for library in tree.libraries.values() {
                let source = library.realpath.clone().with_context(|| {
                    format!(
                        "{program} needs the library {}, but no package of the guest has it",
                        library.name
                    )
                })?;
                let path = match loader.ends_with(&library.name) {
                    true => loader.clone(),
                    false => format!("{libraries}/{}", library.name),
                };
                files.insert(path, source);
            }
        }
        cache::put(&self.initramfs(), |path| {
            let mut archive = Archive::create(path)?;
            for folder in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr"] {
                archive.folder(folder)?;
            }
            for name in ["bin", "sbin", "lib", "lib64"] {
                archive.folder(&format!("usr/{name}"))?;
                archive.symlink(name, &format!("usr/{name}"))?;
            }
            archive.folder(&libraries)?;
            for (name, source) in &files {
                archive.file(name, source)?;
            }
            archive.finish()
        })
    }

    /// Debian with systemd, without running a single maintainer script.
    pub(crate) fn make_disk(&self) -> Result<()> {
        let root = self.packages();
        cache::put(&self.disk(), |path| {
            run(tools::mke2fs(self.machine)
                .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
                .arg(&root)
                .arg(path)
                .arg("3G"))?;
            ensure!(
                path.is_file(),
                "mke2fs exited without an error, but there is no {}",
                path.display()
            );
            Ok(())
        })
    }
}
