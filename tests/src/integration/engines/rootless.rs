//! Rootless podman: it makes no checkpoint, and a container that has asked for one goes on.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use super::{
    super::{
        cgroups::{Counters, within},
        process::{LONG, run},
    },
    Way,
    engine::{Home, PROCESSES, PROGRAM, quietly, version},
    image, say_row,
    user::{self, user},
};

/// What podman says to a user who asks for a checkpoint.
const REFUSAL: &str = "checkpointing a container requires root";

/// Whether this release of Debian has what a user needs to run podman.
pub(super) fn is_here() -> bool {
    std::path::Path::new("/usr/bin/newuidmap").exists()
}

/// A user's container.
struct Rootless {
    id: String,
    dir: PathBuf,
}

impl Rootless {
    fn start() -> Result<Self> {
        let id = Home::new().id;
        let dir = user::home().join(&id);
        image::make_root(&dir)?;
        user::own(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                user::own(&path)?;
            }
        }
        let container = Self { id, dir };
        let words = ["run", "--detach", "--network", "host", "--name"];
        let mut command = user("podman", &words);
        command.arg(&container.id).arg("--rootfs");
        quietly(command.arg(&container.dir).args(PROGRAM))?;
        within(LONG, "the container counts", || {
            let counters = container.counters().read();
            Ok(counters.is_ok_and(|all| all.iter().all(|n| *n > 0)))
        })?;
        Ok(container)
    }

    fn counters(&self) -> Counters {
        Counters {
            dir: self.dir.join("count"),
            processes: PROCESSES,
        }
    }

    fn podman(&self, words: &[&str]) -> Command {
        let mut command = user("podman", words);
        command.arg(&self.id);
        command
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        // It may never have come.
        let _ = run(&mut self.podman(&["rm", "--force", "--time", "0"]));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// podman refuses each way to ask, with the service and without it.
pub(super) fn refuses(guest: &str) -> Result<()> {
    user::prepare()?;
    let versions = version("podman")?;
    for way in [Way::Bare, Way::Automatic] {
        way.prepare()?;
        let container = Rootless::start()?;
        for more in [&[][..], &["--leave-running"], &["--pre-checkpoint"]] {
            let words = [&["container", "checkpoint"], more].concat();
            let finished = run(&mut container.podman(&words))?;
            ensure!(finished.code != 0, "{more:?}: it can: {finished:?}");
            finished.says(REFUSAL)?;
            container.counters().expect_counting_from(&[])?;
        }
        let name = match way {
            Way::Automatic => "automatic",
            Way::Bare | Way::Run => "no guard",
        };
        let refused = ["fails", "", "", "", ""];
        let cells = [
            &[guest, "rootless podman", name],
            &refused[..],
            &[&versions],
        ];
        say_row("life", &cells.concat());
    }
    Ok(())
}
