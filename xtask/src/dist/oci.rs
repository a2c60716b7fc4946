//! The container image: the static binary, its configuration and its licences, and nothing else.
//!
//! It is an OCI image layout in a tar archive (`image-layout.md` of the OCI image specification), as
//! `podman load`, `ctr image import` and skopeo read it. The tar archives are written here and not by
//! tar(1), because each byte of them is part of a digest.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    self, ConfigBuilder, Descriptor, HistoryBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayout, OciLayoutBuilder, Os, PlatformBuilder,
    RootFsBuilder, Sha256Digest,
};
use serde::Serialize;
use tar::{EntryType, Header};

use super::{
    Stage, VERSION,
    manifest::{LICENCE, Manifest},
    time, tree,
};
use crate::{digest::sha256, git, machine::Machine};

pub(super) mod check;

/// The name that the image has after a load. There is no registry of ours: a site that has one gives the
/// image another name.
const NAME: &str = "localhost/freezer-guard";

/// The name with the tag.
pub(crate) fn image_name() -> String {
    format!("{NAME}:{VERSION}")
}

/// The name of the archive.
pub(super) fn file_name(machine: &Machine) -> String {
    format!("freezer-guard-{VERSION}-{}.oci.tar", machine.uname)
}

/// The program in the image, which is the whole of it for a runtime.
const PROGRAM: &str = "usr/bin/freezer-guard";

/// The files of the Debian package that are in the image.
const FILES: [(&str, u32); 7] = [
    (PROGRAM, 0o755),
    ("etc/freezer-guard/config.toml", 0o644),
    ("usr/share/doc/freezer-guard/LICENSE-APACHE", 0o644),
    ("usr/share/doc/freezer-guard/LICENSE-GPL2", 0o644),
    ("usr/share/doc/freezer-guard/LICENSE-MIT", 0o644),
    ("usr/share/doc/freezer-guard/THIRD-PARTY-NOTICES", 0o644),
    (
        "usr/share/doc/freezer-guard/rust-standard-library.html",
        0o644,
    ),
];

/// The directories that the host's are mounted on, with the modes that the service's have.
const MOUNT_POINTS: [(&str, u32); 2] = [
    ("run/freezer-guard", 0o755),
    ("var/lib/freezer-guard", 0o700),
];

/// The annotation by which containerd and podman know the whole name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Makes the archive in `stage.out`.
pub(super) fn make(stage: &Stage) -> Result<PathBuf> {
    let tree = tempfile::tempdir()?;
    tree::unpack(&stage.deb(), tree.path())?;
    let time: u64 = stage.time.parse().context("the time is a number")?;
    let mut layout = Layout {
        machine: stage.machine,
        archive: Archive::new(Vec::new(), time),
        blobs: Vec::new(),
    };
    layout.add_image(&stage.time, tree.path())?;
    let path = stage.out.join(file_name(stage.machine));
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.write_all(&layout.archive.finish()?)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// A tar archive whose files belong to root and have one time.
struct Archive<W: Write> {
    builder: tar::Builder<W>,
    time: u64,
}

impl<W: Write> Archive<W> {
    fn new(writer: W, time: u64) -> Self {
        Self {
            builder: tar::Builder::new(writer),
            time,
        }
    }

    fn add(&mut self, path: &str, mode: u32, kind: EntryType, bytes: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        self.builder
            .append_data(&mut header, path, bytes)
            .with_context(|| format!("put {path} into the archive"))
    }

    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.add(path, mode, EntryType::Regular, bytes)
    }

    fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(&format!("{path}/"), mode, EntryType::Directory, &[])
    }

    fn finish(self) -> Result<W> {
        Ok(self.builder.into_inner()?)
    }
}

/// The only layer: a tar archive of the files in the tree, and of the directories above them.
fn layer(time: u64, tree: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new(), time);
    let mut known = vec![""];
    let paths = FILES.iter().chain(&MOUNT_POINTS).map(|(path, _)| *path);
    for path in paths {
        for (end, _) in path.match_indices('/') {
            if !known.contains(&&path[..end]) {
                known.push(&path[..end]);
                archive.dir(&path[..end], 0o755)?;
            }
        }
    }
    for (path, mode) in FILES {
        let bytes = fs::read(tree.join(path)).with_context(|| format!("read {path}"))?;
        archive.file(path, mode, &bytes)?;
    }
    for (path, mode) in MOUNT_POINTS {
        archive.dir(path, mode)?;
    }
    archive.finish()
}

/// Returns whether the image has this directory.
#[cfg(test)]
pub(crate) fn is_in_image(dir: &str) -> bool {
    let paths = FILES
        .iter()
        .chain(&MOUNT_POINTS)
        .map(|(path, _)| Path::new(path));
    paths
        .flat_map(Path::ancestors)
        .any(|path| Path::new(dir).strip_prefix("/") == Ok(path))
}

/// The labels of the image (`annotations.md` of the specification).
fn labels(time: &str) -> Result<HashMap<String, String>> {
    let manifest = Manifest::read()?;
    let labels = [
        (image::ANNOTATION_TITLE, "freezer-guard".to_owned()),
        (image::ANNOTATION_DESCRIPTION, manifest.description),
        (image::ANNOTATION_VERSION, VERSION.to_owned()),
        (image::ANNOTATION_REVISION, git::commit()),
        (image::ANNOTATION_CREATED, time::format(time, RFC_3339)?),
        (image::ANNOTATION_LICENSES, LICENCE.to_owned()),
        (image::ANNOTATION_AUTHORS, manifest.maintainer),
    ];
    Ok(labels.map(|(name, text)| (name.to_owned(), text)).into())
}

const RFC_3339: &str = "+%Y-%m-%dT%H:%M:%SZ";

/// An image layout under way.
struct Layout {
    machine: &'static Machine,
    archive: Archive<Vec<u8>>,
    blobs: Vec<String>,
}

impl Layout {
    /// Adds the image of the files in this tree, with all that leads to it.
    fn add_image(&mut self, time: &str, tree: &Path) -> Result<()> {
        self.archive.dir("blobs", 0o755)?;
        self.archive.dir("blobs/sha256", 0o755)?;
        let layer = layer(self.archive.time, tree)?;
        let diff_id = format!("sha256:{}", sha256(&layer));
        let layer = self.blob(MediaType::ImageLayerGzip, &compressed(&layer)?)?;
        let config = self.config(time, diff_id)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(image::SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(vec![layer])
            .annotations(labels(time)?)
            .build()?;
        let mut manifest = self.blob(MediaType::ImageManifest, &json(&manifest)?)?;
        let platform = PlatformBuilder::default()
            .architecture(self.machine.container.clone())
            .os(Os::Linux);
        manifest.set_platform(Some(platform.build()?));
        let name = image_name();
        manifest.set_annotations(Some(HashMap::from([
            (CONTAINERD_NAME.to_owned(), name.clone()),
            (image::ANNOTATION_REF_NAME.to_owned(), name),
        ])));
        let index = ImageIndexBuilder::default()
            .schema_version(image::SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()?;
        self.archive.file("index.json", 0o644, &json(&index)?)?;
        let version: OciLayout = OciLayoutBuilder::default()
            .image_layout_version("1.0.0")
            .build()?;
        self.archive.file("oci-layout", 0o644, &json(&version)?)
    }

    /// How a runtime starts the image.
    fn config(&mut self, time: &str, diff_id: String) -> Result<Descriptor> {
        let created = time::format(time, RFC_3339)?;
        let config = ConfigBuilder::default()
            .user("0:0")
            .env(vec!["PATH=/usr/bin".to_owned()])
            .entrypoint(vec![format!("/{PROGRAM}")])
            .cmd(vec!["daemon".to_owned()])
            .working_dir("/")
            .stop_signal("SIGTERM")
            .labels(labels(time)?)
            .build()?;
        let rootfs = RootFsBuilder::default()
            .typ("layers")
            .diff_ids(vec![diff_id])
            .build()?;
        let history = HistoryBuilder::default()
            .created(created.clone())
            .created_by("cargo xtask dist")
            .build()?;
        let configuration = ImageConfigurationBuilder::default()
            .created(created)
            .architecture(self.machine.container.clone())
            .os(Os::Linux)
            .config(config)
            .rootfs(rootfs)
            .history(vec![history])
            .build()?;
        self.blob(MediaType::ImageConfig, &json(&configuration)?)
    }

    /// Adds content under its digest.
    fn blob(&mut self, kind: MediaType, bytes: &[u8]) -> Result<Descriptor> {
        let digest = sha256(bytes);
        let path = format!("blobs/sha256/{digest}");
        if !self.blobs.contains(&digest) {
            self.archive.file(&path, 0o644, bytes)?;
            self.blobs.push(digest.clone());
        }
        let digest: Sha256Digest = digest.parse()?;
        Ok(Descriptor::new(kind, bytes.len() as u64, digest))
    }
}

/// JSON with its keys in their order: the types of the specification have hash maps.
fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

/// gzip without a name and a time.
fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().write(Vec::new(), Compression::best());
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}
