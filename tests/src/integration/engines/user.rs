//! A user whose manager (`user@1000.service`) runs without a login.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    super::service::{property, systemctl},
    engine::command,
};

const NAME: &str = "guest";
const ID: u32 = 1000;
/// The unit of the user's manager.
const MANAGER: &str = "user@1000.service";
/// The slice of all that is the user's.
pub(super) const SLICE: &str = "user-1000.slice";
/// The user's `XDG_RUNTIME_DIR`.
const RUNTIME_DIR: &str = "/run/user/1000";

/// Makes the user and starts the user's manager, unless that has been done.
pub(super) fn prepare() -> Result<()> {
    if !home().exists() {
        make()?;
    }
    systemctl(&["start", MANAGER])?.expect(0)?;
    Ok(())
}

/// Returns whether the user's manager runs.
pub(super) fn is_managed() -> Result<bool> {
    Ok(property(MANAGER, "ActiveState")? == "active")
}

/// Makes the user.
fn make() -> Result<()> {
    let passwd = format!("{NAME}:x:{ID}:{ID}::{}:/bin/sh", home().display());
    let group = format!("{NAME}:x:{ID}:");
    let ids = format!("{NAME}:100000:65536");
    // Debian makes the files of PAM when PAM is installed.
    let session = "session required pam_permit.so\nsession optional pam_systemd.so";
    for (file, text) in [
        ("passwd", &*passwd),
        ("group", &group),
        ("subuid", &ids),
        ("subgid", &ids),
        ("pam.d/common-account", "account required pam_permit.so"),
        ("pam.d/common-auth", "auth required pam_permit.so"),
        ("pam.d/common-password", "password required pam_permit.so"),
        ("pam.d/common-session", session),
        ("pam.d/common-session-noninteractive", session),
    ] {
        let path = Path::new("/etc").join(file);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.with_context(|| format!("open {}", path.display()))?;
        writeln!(file, "{text}")?;
    }
    own(&home())
}

/// Returns the user's home.
pub(super) fn home() -> PathBuf {
    Path::new("/home").join(NAME)
}

/// Makes a directory of the user's.
pub(super) fn own(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    chown(dir, Some(ID), Some(ID)).with_context(|| format!("give {} away", dir.display()))
}

/// Returns a command that the user runs.
pub(super) fn user(program: &str, words: &[&str]) -> Command {
    let mut command = command(program, words);
    command.uid(ID).gid(ID).current_dir(home());
    command.env("HOME", home()).env("USER", NAME);
    command.env("XDG_RUNTIME_DIR", RUNTIME_DIR);
    command
}

/// Returns `systemctl` of the user's systemd.
pub(super) fn own_systemctl(words: &[&str]) -> Command {
    user("systemctl", &[&["--user"], words].concat())
}
