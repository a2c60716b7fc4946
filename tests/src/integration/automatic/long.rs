//! Dumps that take too long.

use anyhow::{Result, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy, Workload},
        configured::Configured,
        process::{LONG, guards},
        service::{eventually, expect_idle, journal},
    },
    FakeCriu, armed, sh, write,
};

/// The service says what to do, and does it in the end.
pub(super) fn takes_long(hierarchy: Hierarchy) -> Result<()> {
    let _warns = Configured::new("[automatic]\nwarn_after = \"1s\"\n")?;
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let mut criu = FakeCriu::new()?.start()?;
    sh(&mut criu, &write(&target, hierarchy.frozen()))?;
    let id = armed()?["id"].clone();
    let killed = kill(Pid::from_raw(workload.pid), Signal::SIGKILL);
    ensure!(killed == Err(Errno::EBUSY), "{killed:?}");
    let end = format!("`freezer-guard end --guard {id} --force`");
    let [way_out, long] = [
        format!("pid {} holds the guard of {}", criu.pid(), target.text()),
        format!("the dump of {} takes long", target.text()),
    ];
    for words in [way_out, long] {
        eventually("it says what to do", || {
            let journal = journal()?;
            let mut lines = journal.lines();
            Ok(lines.any(|line| line.contains(&words) && line.contains(&end)))
        })?;
    }
    ensure!(guards()?.len() == 1, "the guard is gone");
    let _kills = Configured::new("[automatic]\ntimeout = \"1s\"\n")?;
    eventually("the checkpointer is killed", || criu.has_ended())?;
    criu.wait(LONG)?;
    eventually("it is thawed", || Ok(target.state()? == "THAWED"))?;
    workload.expect_counting()?;
    expect_idle()
}
