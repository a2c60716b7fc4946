//! A container of `systemd-nspawn` that runs one program. Root dumps that program's tree. To restore
//! it, a new service runs CRIU in place of nspawn.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    super::{cgroups::Hierarchy, mounts::Mount, service::property},
    engine::{Engine, Home, Kind, PROGRAM, PreDump, SLICE, State, Verb, command, quietly},
    tree::{self, GUARDED},
};

/// nspawn in a service of its own, without `systemd-machined`.
pub(super) struct Nspawn;

/// nspawn mounts these from the host, below `/run/host`.
const MOUNTS: [&str; 3] = ["incoming", "unix-export", "os-release"];

impl Nspawn {
    fn name(home: &Home) -> String {
        format!("{}.service", home.id)
    }

    /// Returns the cgroup of the program. nspawn itself is in another one.
    fn payload(home: &Home) -> PathBuf {
        let unit = Hierarchy::V2.root().join(SLICE).join(Self::name(home));
        unit.join("payload")
    }

    /// Returns CRIU's options for a dump: the mounts of [`MOUNTS`] get names.
    fn dump_options() -> Vec<String> {
        let external = |name| format!("--external=mnt[/run/host/{name}]:{name}");
        MOUNTS.map(external).to_vec()
    }

    /// Returns CRIU's options for a restore: the named mounts get sources on the host. Empty directories
    /// take the place of those that nspawn has made.
    fn restore_options(home: &Home) -> Result<Vec<String>> {
        let mut options = vec![format!("--root={}", home.rootfs().display())];
        for name in MOUNTS {
            let source = match name {
                "os-release" => PathBuf::from("/usr/lib/os-release"),
                name => home.dir.join(name),
            };
            if !source.exists() {
                fs::create_dir(&source)?;
            }
            options.push(format!("--external=mnt[{name}]:{}", source.display()));
        }
        Ok(options)
    }
}

impl Engine for Nspawn {
    fn title(&self) -> &'static str {
        "systemd-nspawn"
    }

    fn versions(&self) -> Result<String> {
        tree::versions()
    }

    /// Older versions of nspawn delete a file that they mount twice (`boot_id`). CRIU restores no such
    /// mounts.
    fn is_in(&self, release: &str) -> bool {
        !matches!(release, "bookworm" | "trixie")
    }

    fn pre_dump(&self) -> PreDump {
        PreDump::Frozen
    }

    /// nspawn does that, and systemd once a service has restored the container.
    fn supervisors(&self) -> &'static [&'static str] {
        &["systemd-nspawn", "systemd"]
    }

    fn guarded_by(&self) -> &'static str {
        GUARDED
    }

    fn start(&self, home: &Home) -> Result<()> {
        // nspawn wants a root that looks like one.
        let root = home.rootfs();
        for dir in ["usr", "var"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::write(root.join("etc/os-release"), "")?;
        let mut run = tree::service(&Self::name(home), &["systemd-nspawn", "--quiet"]);
        // Without a terminal, a network of its own, and copies of the host's files.
        run.args(["--register=no", "--keep-unit", "--console=pipe"]);
        run.args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
        run.args(["--machine", &home.id, "--directory"]).arg(root);
        // The program itself opens the container's `/dev/null` in place of the streams that it inherits.
        quietly(run.args(PROGRAM))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        let (_, pid) = self.inspect(home)?.context("it is not there")?;
        tree::by_criu(home, name, kind, pid, &Self::dump_options())
    }

    fn guarded(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Option<Command>> {
        let cgroup = Self::payload(home);
        let cgroup = cgroup.to_str().context("a plain path")?;
        tree::by_us(
            home,
            name,
            kind,
            ["--cgroup", cgroup],
            &Self::dump_options(),
        )
        .map(Some)
    }

    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        let options = Self::restore_options(home)?;
        // CRIU wants the root to be a mount. The restored one is the container's own.
        let _root = Mount::bind(&home.rootfs(), home.rootfs())?;
        tree::restore_as_service(home, &Self::name(home), name, &[], &options)
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        let unit = Self::name(home);
        let Some(state) = tree::state(|name| property(&unit, name))? else {
            return Ok(None);
        };
        let cgroup = Self::payload(home);
        let Some(pid) = first(&cgroup) else {
            return Ok(Some((State::Ended, 0)));
        };
        let frozen = fs::read_to_string(cgroup.join("cgroup.freeze"))?;
        let state = match frozen.trim() {
            "1" => State::Paused,
            _ => state,
        };
        Ok(Some((state, pid)))
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        // nspawn has no pause: root writes to the payload's freezer.
        let write = |value: &str| {
            let path = Self::payload(home).join("cgroup.freeze");
            let mut shell = command("sh", &["-c", "echo \"$1\" > \"$2\"", "sh", value]);
            shell.arg(path);
            shell
        };
        match verb {
            Verb::Pause => Some(write("1")),
            Verb::Resume => Some(write("0")),
            Verb::Exec => {
                let pid = first(&Self::payload(home))?.to_string();
                let mut enter = command("nsenter", &["--all", "--join-cgroup", "--target", &pid]);
                enter.args(["/guest-tool", "--help"]);
                Some(enter)
            }
            verb => tree::verb(tree::systemctl, &Self::name(home), verb),
        }
    }

    fn remove(&self, home: &Home) {
        tree::remove(tree::systemctl, &Self::name(home));
    }
}

/// Returns the first process of a cgroup, which came before the others.
fn first(cgroup: &Path) -> Option<i32> {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
    pids.lines().filter_map(|pid| pid.parse().ok()).min()
}
