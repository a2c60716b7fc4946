//! Incus: its daemon has liblxc start CRIU, and keeps the images. systemd does not know the
//! containers.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    super::{process::run, service::systemctl},
    engine::{self, Engine, Home, Kind, PROGRAM, State, Verb, quietly, version},
    image,
};

/// The name of the image that has the test's program.
const IMAGE: &str = "count";
/// The directory of all that Incus keeps.
const HOME: &str = "/var/lib/incus";
/// The directory of the containers in a pool of plain directories.
const POOL: &str = "/var/lib/incus/storage-pools/default/containers";

/// Incus with privileged containers, which are the only ones that CRIU can dump for it.
pub(super) struct Incus;

impl Incus {
    fn command(words: &[&str]) -> Command {
        engine::command("incus", words)
    }

    /// Imports an image, which Incus makes each container's root of.
    fn import() -> Result<()> {
        let dir = Path::new("/root/incus-image");
        image::make_root(&dir.join("rootfs"))?;
        let metadata = format!("architecture: {ARCH}\ncreation_date: 1700000000\n");
        fs::write(dir.join("metadata.yaml"), metadata)?;
        let archive = dir.with_extension("tar");
        image::tar(dir, &archive, &["metadata.yaml", "rootfs"])?;
        let mut import = Self::command(&["image", "import", "--alias", IMAGE]);
        run(import.arg(archive))?.expect(0)?;
        Ok(fs::remove_dir_all(dir)?)
    }
}

impl Engine for Incus {
    fn title(&self) -> &'static str {
        "Incus"
    }

    fn versions(&self) -> Result<String> {
        let versions = [version("incus")?, version("lxc-start")?].join(", ");
        let names = versions.replace("lxc-start", "LXC");
        Ok(names.replace("incus", "Incus"))
    }

    fn is_in(&self, release: &str) -> bool {
        release == "forky"
    }

    fn daemon(&self) -> Option<&'static str> {
        Some("incus")
    }

    /// Its liblxc does not find the cgroup of a restored container.
    fn checkpoints_restored(&self) -> bool {
        false
    }

    fn slice(&self) -> Option<&'static str> {
        None
    }

    fn prepare(&self) -> Result<()> {
        if Path::new(POOL).exists() {
            return Ok(());
        }
        // Incus gives its containers a network namespace. CRIU would lock that with iptables,
        // which the guest does not have.
        fs::create_dir_all("/etc/criu")?;
        fs::write("/etc/criu/default.conf", "network-lock skip\n")?;
        // CRIU cannot restore a mount that gets its events from a mount outside of the container.
        fs::create_dir_all(HOME)?;
        run(&mut engine::command("mount", &["--bind", HOME, HOME]))?.expect(0)?;
        run(&mut engine::command("mount", &["--make-private", HOME]))?.expect(0)?;
        systemctl(&["start", "incus"])?.expect(0)?;
        Self::import()?;
        let create = ["storage", "create", "default", "dir"];
        run(&mut Self::command(&create))?.expect(0)?;
        let device = ["profile", "device", "add", "default", "root", "disk"];
        let mut add = Self::command(&device);
        run(add.args(["pool=default", "path=/"]))?.expect(0)?;
        Ok(())
    }

    fn start(&self, home: &Home) -> Result<()> {
        let raw = [
            format!("lxc.init.cmd={}", PROGRAM.join(" ")),
            // CRIU cannot dump a terminal outside of the container.
            "lxc.console.path=none".to_owned(),
            "lxc.tty.max=0".to_owned(),
            "lxc.pty.max=1".to_owned(),
        ];
        let mut create = Self::command(&["create", IMAGE, &home.id]);
        create.args(["--config", "security.privileged=true"]);
        create.args(["--config", "migration.stateful=true"]);
        create.arg(format!("--config=raw.lxc={}", raw.join("\n")));
        quietly(&mut create)?;
        quietly(&mut Self::command(&["start", &home.id]))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        let words = match kind.leave_running {
            true => &["snapshot", "create", "--stateful", &home.id, name][..],
            false => &["stop", "--stateful", &home.id],
        };
        Ok(Self::command(words))
    }

    /// A snapshot takes the place of a container that runs.
    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        let words = match self.inspect(home)? {
            Some((State::Running, _)) => &["snapshot", "restore", "--stateful", &home.id, name][..],
            _ => &["start", &home.id],
        };
        quietly(&mut Self::command(words))
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let path = format!("/1.0/instances/{}/state", home.id);
        engine::inspect(&mut Self::command(&["query", &path]), ["/status", "/pid"])
    }

    fn counters(&self, home: &Home) -> PathBuf {
        Path::new(POOL).join(&home.id).join("rootfs/count")
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let id = &*home.id;
        let words = match verb {
            Verb::Pause => &["pause", id][..],
            Verb::Resume => &["resume", id],
            Verb::Exec => &["exec", id, "--", "/guest-tool", "--help"],
            Verb::Update => &["config", "set", id, "limits.memory=300MB"],
            Verb::Kill => &["stop", "--force", id],
            Verb::Stop => &["stop", "--timeout", "1", id],
            Verb::Remove => &["delete", "--force", id],
            Verb::RestartAlways => return None,
        };
        Some(Self::command(words))
    }

    fn remove(&self, home: &Home) {
        // It may have gone, or never have come.
        let _ = run(&mut Self::command(&["delete", "--force", &home.id]));
    }
}
