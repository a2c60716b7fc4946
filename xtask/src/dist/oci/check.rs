//! The check of the container image: an image tool takes it, each digest is right, and the layer has
//! the packed files and no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use goblin::elf::Elf;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, OciLayout};
use tar::EntryType;

use super::{FILES, PROGRAM, file_name, image_name, labels};
use crate::{
    digest::sha256,
    dist::{Stage, tree},
    packaging_tools::{self, WORK},
    run,
};

/// The directory of the unpacked archive.
struct Unpacked<'a>(&'a Path);

impl Unpacked<'_> {
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.0.join(name)).with_context(|| format!("the archive has no {name}"))
    }

    /// The content that a descriptor names.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.digest().digest();
        let bytes = self.read(&format!("blobs/sha256/{digest}"))?;
        ensure!(sha256(&bytes) == digest, "{digest} is not the digest");
        ensure!(
            bytes.len() as u64 == descriptor.size(),
            "the size of {digest} is wrong"
        );
        Ok(bytes)
    }
}

/// Checks the archive in `stage.out`.
pub(in crate::dist) fn image(stage: &Stage) -> Result<()> {
    by_skopeo(stage)?;
    let dir = tempfile::tempdir()?;
    tar::Archive::new(File::open(stage.out.join(file_name(stage.machine)))?).unpack(dir.path())?;
    let unpacked = Unpacked(dir.path());
    let layout: OciLayout = serde_json::from_slice(&unpacked.read("oci-layout")?)?;
    ensure!(
        layout.image_layout_version() == "1.0.0",
        "the version is wrong"
    );
    let index: ImageIndex = serde_json::from_slice(&unpacked.read("index.json")?)?;
    let [descriptor] = &index.manifests()[..] else {
        anyhow::bail!("the archive has not one image");
    };
    let manifest: ImageManifest = serde_json::from_slice(&unpacked.blob(descriptor)?)?;
    let [layer] = &manifest.layers()[..] else {
        anyhow::bail!("the image has not one layer");
    };
    let config: ImageConfiguration = serde_json::from_slice(&unpacked.blob(manifest.config())?)?;
    let mut bytes = Vec::new();
    GzDecoder::new(&*unpacked.blob(layer)?).read_to_end(&mut bytes)?;
    let diff_id = format!("sha256:{}", sha256(&bytes));
    ensure!(
        config.rootfs().diff_ids()[..] == [diff_id],
        "the layer is another one than the configuration says"
    );
    let blobs = fs::read_dir(dir.path().join("blobs/sha256"))?.count();
    ensure!(blobs == 3, "{blobs} blobs: some are of no use");
    labelled(stage, &config)?;
    same_files(stage, &bytes)
}

/// skopeo reads the image as engines do, and writes it anew: so it checks each digest.
fn by_skopeo(stage: &Stage) -> Result<()> {
    let work = tempfile::tempdir()?;
    fs::copy(
        stage.out.join(file_name(stage.machine)),
        work.path().join("image.tar"),
    )?;
    let from = format!("oci-archive:{WORK}/image.tar:{}", image_name());
    run(packaging_tools::command(work.path(), "skopeo")
        .args(["--insecure-policy", "copy", "--quiet", &from])
        .arg(format!("dir:{WORK}/copy")))
    .context("skopeo does not take the image")
}

fn labelled(stage: &Stage, image: &ImageConfiguration) -> Result<()> {
    let config = image.config().as_ref().context("it has no configuration")?;
    let found: BTreeMap<_, _> = config.labels().iter().flatten().collect();
    let expected = labels(&stage.time)?;
    ensure!(
        found == expected.iter().collect(),
        "the labels are {found:?}"
    );
    let entrypoint = config.entrypoint().as_deref().unwrap_or_default();
    ensure!(
        entrypoint == [format!("/{PROGRAM}")],
        "it starts {entrypoint:?}"
    );
    Ok(())
}

/// The layer's files are those of the Debian package, byte for byte, and the program needs no other.
fn same_files(stage: &Stage, layer: &[u8]) -> Result<()> {
    let package = tempfile::tempdir()?;
    tree::unpack(&stage.deb(), package.path())?;
    let mut found = BTreeSet::new();
    for entry in tar::Archive::new(layer).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let header = entry.header();
        ensure!(
            header.uid()? == 0 && header.gid()? == 0 && header.mtime()?.to_string() == stage.time,
            "{path} has another owner or time"
        );
        match header.entry_type() {
            EntryType::Directory => continue,
            EntryType::Regular => {}
            kind => anyhow::bail!("{path} is a {kind:?}"),
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        ensure!(
            bytes == fs::read(package.path().join(&path))?,
            "{path} is another one than that of the package"
        );
        found.insert(path);
    }
    let expected: BTreeSet<_> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
    ensure!(found == expected, "the layer has {found:?}");
    let program = fs::read(package.path().join(PROGRAM))?;
    let elf = Elf::parse(&program).context("the program is no ELF file")?;
    ensure!(
        elf.interpreter.is_none() && elf.libraries.is_empty(),
        "the program is not static"
    );
    Ok(())
}
