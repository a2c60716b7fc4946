//! The power-off in the middle of checkpoints: guards hold up nothing.
//!
//! The test prepares it. `guest-init` powers the guest off when all tests have ended, and
//! xtask reads on the console how that went.

use std::{fs, mem::forget, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{
    List, authority,
    cgroups::{Cgroup, Hierarchy},
    process::{Held, Process, guards},
    service::{eventually, systemctl},
};
use crate::config::POWER_OFF_PATH;

/// On v1 a frozen task ends when it is thawed, with freezer-guard and without.
pub(super) fn list(list: &mut List<'_>) {
    if list.hierarchy == Hierarchy::V2 {
        list.add("guards_do_not_hold_it_up", prepare);
    }
}

/// Two guards, of root and of a user. Neither their holders nor their targets belong to a
/// unit, and the holders ignore SIGTERM: so they are there until systemd kills what is left.
/// The targets have files open that keep the root file system from being unmounted.
fn prepare(hierarchy: Hierarchy) -> Result<()> {
    let holders = Cgroup::new(hierarchy)?;
    let of_root = occupied(Cgroup::new(hierarchy)?)?;
    let mut command = Held::command(&[&of_root]);
    command.arg("--");
    add(
        &mut command,
        &deaf(Command::new("sh").args(["-c", "echo held; exec sleep 100000"])),
    );
    let mut run = Process::spawn(&mut command)?;
    run.expect_line("held")?;
    // It would take SIGTERM for the wish to end.
    run.signal(Signal::SIGKILL)?;
    eventually("`run` has ended", || run.has_ended())?;
    let (parent, of_user) = authority::delegated(hierarchy)?;
    let of_user = occupied(of_user)?;
    let mut begin = authority::begin(&of_user)?;
    let mut client = Process::spawn(&mut deaf(begin.args(["--then", "sleep 100000"])))?;
    let line = client.line()?;
    ensure!(line.contains("CHECKPOINTING"), "{line}");
    let held = guards()?;
    ensure!(held.len() == 2, "{held:?}");
    for guard in &held {
        for pid in guard["holder_pids"].as_array().context("its holder")? {
            let moved = holders.write("cgroup.procs", &pid.to_string());
            moved.with_context(|| format!("move {pid}"))?;
        }
    }
    forget((holders, of_root, of_user, parent, run, client));
    let settings = "/etc/systemd/system.conf.d";
    fs::create_dir_all(settings)?;
    fs::write(
        format!("{settings}/timeout.conf"),
        "[Manager]\nDefaultTimeoutStopSec=5s\n",
    )?;
    systemctl(&["daemon-reload"])?.expect(0)?;
    // What systemd tells the kernel's log comes to the console.
    fs::write("/proc/sys/kernel/printk", "7")?;
    fs::write(POWER_OFF_PATH, "").context("ask for a power-off")
}

/// Puts a process into the cgroup that writes to a file of the disk.
fn occupied(cgroup: Cgroup) -> Result<Cgroup> {
    let file = format!("/var/tmp/{}", super::cgroups::unique());
    let mut sleep = in_session(Command::new("sleep").arg("100000"));
    let sleep = sleep
        .stdout(fs::File::create(file)?)
        .spawn()
        .context("run sleep")?;
    cgroup.write("cgroup.procs", &sleep.id().to_string())?;
    Ok(cgroup)
}

/// The command in a session of its own: the terminal of ours hangs up.
fn in_session(command: &Command) -> Command {
    let mut session = Command::new("setsid");
    add(&mut session, command);
    session
}

/// The same, and it ignores SIGTERM.
fn deaf(command: &Command) -> Command {
    let mut deaf = in_session(Command::new("sh").args(["-c", "trap '' TERM; exec \"$@\"", "sh"]));
    add(&mut deaf, command);
    deaf
}

fn add(to: &mut Command, command: &Command) {
    to.arg(command.get_program()).args(command.get_args());
}
