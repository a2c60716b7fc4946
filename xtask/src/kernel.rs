//! The kernels we test on, and what a guest needs of their modules.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;
use goblin::elf::Elf;

use crate::{
    cache,
    debian::Apt,
    image::{BOOKWORM, EXPERIMENTAL, FORKY, FORKY_ARM64, TRIXIE, TRIXIE_ARM64, Userland},
    machine::Machine,
};

/// A kernel of Debian's.
pub(crate) struct Kernel {
    /// What `--kernel` calls it.
    pub(crate) name: &'static str,
    release: &'static str,
    /// The name of its package without flavour and machine, as a regular expression: the newest is
    /// taken.
    package: &'static str,
    /// Debian's build of it.
    flavour: &'static str,
    /// Whose programs go with it in a guest: CRIU has to start on it.
    pub(crate) userland: &'static Userland,
    /// Whether instructions are counted on it.
    pub(crate) is_counted: bool,
}

/// A new kernel is a new line here; `matrix.rs` lists its guests. (`docs/kernels.md` is
/// made anew with it, and `TESTED` of the product has to name it: a test compares them.)
#[rustfmt::skip]
pub(crate) static KERNELS: [Kernel; 9] = [
    kernel("6.1", "bookworm", r"^linux-image-6\.1\.0-[0-9]+", &BOOKWORM),
    kernel("6.12", "trixie", r"^linux-image-6\.12\.[0-9]+\+deb13", &BOOKWORM),
    kernel("6.18", "trixie-backports", r"^linux-image-6\.18\.[0-9]+\+deb13", &TRIXIE),
    kernel("7.3", "trixie-backports", r"^linux-image-7\.3\.[0-9]+\+deb13", &FORKY),
    kernel("6.12-rt", "trixie", r"^linux-image-6\.12\.[0-9]+\+deb13", &BOOKWORM).flavour("rt"),
    kernel("7.3-experimental", "trixie-backports", r"^linux-image-7\.3\.[0-9]+\+deb13", &EXPERIMENTAL).uncounted(),
    kernel("6.1-arm64", "bookworm", r"^linux-image-6\.1\.0-[0-9]+", &TRIXIE_ARM64).uncounted(),
    kernel("6.12-arm64", "trixie", r"^linux-image-6\.12\.[0-9]+\+deb13", &TRIXIE_ARM64),
    kernel("7.3-arm64", "trixie-backports", r"^linux-image-7\.3\.[0-9]+\+deb13", &FORKY_ARM64),
];

const fn kernel(
    name: &'static str,
    release: &'static str,
    package: &'static str,
    userland: &'static Userland,
) -> Kernel {
    Kernel {
        name,
        release,
        package,
        flavour: "cloud",
        userland,
        is_counted: true,
    }
}

impl Kernel {
    /// Another build of it, on which nothing is counted.
    const fn flavour(self, flavour: &'static str) -> Self {
        Self {
            flavour,
            ..self.uncounted()
        }
    }

    /// No guard can begin on it, or it is there under another name too.
    const fn uncounted(self) -> Self {
        Self {
            is_counted: false,
            ..self
        }
    }
}

/// What `--kernel` takes.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(KERNELS.iter().map(|kernel| kernel.name))
}

/// What CRIU and the root disk need. Those that are built in are not missed.
const MODULES: [&str; 21] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "crc32c_generic",
    "nfnetlink",
    "nf_tables",
    "nf_conntrack_netlink",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "unix_diag",
    "netlink_diag",
    "af_packet_diag",
    "tun",
    "veth",
    "dummy",
    "bridge",
    "overlay",
    "autofs4",
    "fuse",
];

impl Kernel {
    /// The kernel that `--kernel NAME` means.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        let names = || KERNELS.each_ref().map(|kernel| kernel.name).join(", ");
        KERNELS
            .iter()
            .find(|kernel| kernel.name == name)
            .with_context(|| format!("there is no kernel {name}: choose one of {}", names()))
    }

    /// Those that are called so, or with `all` every one.
    pub(crate) fn chosen(names: &[String]) -> Result<Vec<&'static Self>> {
        match names.iter().any(|name| name == "all") {
            true => Ok(KERNELS.iter().collect()),
            false => names.iter().map(|name| Self::named(name)).collect(),
        }
    }

    /// The machine that it is for: that of its userland.
    pub(crate) fn machine(&self) -> &'static Machine {
        self.userland.machine
    }

    pub(crate) fn dir(&self) -> PathBuf {
        // A longer list of modules is another directory: that of an older list lacks some.
        let name = format!("{}-{}-modules", self.name, MODULES.len());
        cache::dir().join("kernels").join(name)
    }

    /// The kernel image.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir().join("vmlinuz")
    }

    /// The modules a guest loads, uncompressed and in the order to load them.
    pub(crate) fn modules(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir().join("modules");
        let mut modules = fs::read_dir(&dir)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<Result<Vec<_>, _>>()
            })
            .with_context(|| format!("read {}", dir.display()))?;
        modules.sort();
        Ok(modules)
    }

    /// Downloads it and leaves `vmlinuz` and the modules in [`Kernel::dir`].
    pub(crate) fn fetch(&self) -> Result<()> {
        let machine = self.machine();
        let apt = Apt::open(self.release, machine)?;
        let name = format!("{}-{}-{}$", self.package, self.flavour, machine.name);
        let package = apt.newest(&name)?;
        // Since 7.0 the image is empty, and leads to these two.
        let parts = ["linux-binary", "linux-modules"]
            .map(|part| package.replacen("linux-image", part, 1))
            .into_iter()
            .filter(|part| apt.has(part));
        let packages: Vec<_> = std::iter::once(package.clone()).chain(parts).collect();
        cache::put(&self.dir(), |dir| {
            let unpacked = dir.with_extension("deb");
            apt.unpack(&packages, &unpacked)?;
            fs::create_dir_all(dir.join("modules"))?;
            let lib = ["usr/lib/modules", "lib/modules"]
                .map(|folder| unpacked.join(folder))
                .into_iter()
                .find(|folder| folder.is_dir())
                .with_context(|| format!("the package {package} has no modules"))?;
            // Beside its modules since 7.0.
            let image = match only_entry(&lib, "")?.join("vmlinuz") {
                image if image.is_file() => image,
                _ => only_entry(&unpacked.join("boot"), "vmlinuz-")?,
            };
            fs::copy(&image, dir.join("vmlinuz"))?;
            let mut ordered = Vec::new();
            for name in MODULES {
                order(&lib, name, &mut ordered)?;
            }
            for (number, module) in ordered.iter().enumerate() {
                let file = dir.join(format!("modules/{number:02}-{}.ko", module.name));
                fs::write(file, &module.bytes)?;
            }
            Ok(())
        })
    }
}

struct Module {
    name: String,
    bytes: Vec<u8>,
}

/// Appends the module and all it depends on, dependencies first. The packages
/// carry no `modules.dep`, so go by each module's own `.modinfo`.
fn order(lib: &Path, name: &str, ordered: &mut Vec<Module>) -> Result<()> {
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = find_module(lib, name)? else {
        return Ok(());
    };
    let bytes = read_module(&path).with_context(|| format!("read {}", path.display()))?;
    for dependency in dependencies(&bytes).with_context(|| format!("parse {}", path.display()))? {
        order(lib, &dependency, ordered)?;
    }
    ordered.push(Module {
        name: name.to_owned(),
        bytes,
    });
    Ok(())
}

/// Module names use `_` where file names may use `-`.
fn find_module(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if let Some((stem, extension)) = entry.file_name().to_string_lossy().split_once('.')
            && extension.starts_with("ko")
            && stem.replace('-', "_") == name
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    liblzma::read::XzDecoder::new(&bytes[..]).read_to_end(&mut plain)?;
    Ok(plain)
}

fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = Elf::parse(module)?;
    let mut sections = file.section_headers.iter();
    let modinfo = sections
        .find(|section| file.shdr_strtab.get_at(section.sh_name) == Some(".modinfo"))
        .and_then(|section| module.get(section.file_range()?))
        .context("no section .modinfo")?;
    Ok(modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect())
}

fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(
        found.len() == 1,
        "{} holds {} files called {prefix}…",
        dir.display(),
        found.len()
    );
    Ok(found.remove(0))
}
