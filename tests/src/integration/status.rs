//! What `status` and the summary tell.

mod watch;

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, Workload},
    process::{Held, guard, guards, run, status, tool},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("states", states);
    list.add("guard", one_guard);
    list.add("text", text);
    list.add("without_text", without_text);
    list.add("watch", watch::on_a_terminal);
    list.add("watch_into_a_pipe", watch::into_a_pipe);
    list.add("watch_into_a_pipe_of_nobody", watch::into_a_pipe_of_nobody);
    list.add("of_no_service", |_| {
        for arguments in [
            &["status", "--service"][..],
            &["status", "--service", "--last"],
        ] {
            guard(arguments)?.expect(70)?.says("does not run")?;
        }
        Ok(())
    });
    list.add("of_no_cgroup", |_| {
        guard(["status", "/tmp"])?.expect(64)?;
        Ok(())
    });
}

fn states(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let workload = Workload::start(&[&target], 0)?;
    let path = target.text();
    let expect = |state: &str| -> Result<()> {
        let status = status(&[&path])?;
        ensure!(
            status["path"] == *path && status["state"] == state,
            "not {state}: {status}"
        );
        ensure!(
            status["guard"].is_null() == (state != "CHECKPOINTING"),
            "{status}"
        );
        Ok(())
    };
    expect("THAWED")?;
    target.freeze()?;
    expect("FROZEN")?;
    target.thaw()?;
    let held = Held::new(&[&target])?;
    expect("CHECKPOINTING")?;
    held.release()?.expect(0)?;
    expect("THAWED")?;
    workload.expect_counting()
}

/// JSON has the exact bytes beside what it can say.
fn without_text(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::without_text(hierarchy)?;
    let held = Held::new(&[&target])?;
    let expect_exact = |encoded: &Value| -> Result<()> {
        let encoded = encoded.as_str().context("no bytes")?;
        let mut decode = Command::new("sh");
        let decoded = decode
            .args(["-c", "echo \"$0\" | base64 -d", encoded])
            .output()?;
        ensure!(
            decoded.stdout == target.path.as_os_str().as_bytes(),
            "{decoded:?}"
        );
        Ok(())
    };
    let shown = guard([
        "status".as_ref(),
        "--json".as_ref(),
        target.path.as_os_str(),
    ])?
    .expect(0)?;
    let state: Value = serde_json::from_str(&shown.stdout)?;
    ensure!(state["path"] == target.text(), "{state}");
    expect_exact(&state["path_base64"])?;
    expect_exact(&state["guard"]["cgroups_base64"][0])?;
    let happened = guard(["events", "--json"])?.expect(0)?;
    let mut begun = happened
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let begun = begun.find(|event: &Value| event["cgroups"][0] == target.text());
    expect_exact(&begun.context("no event")?["cgroups_base64"][0])?;
    held.release()?.expect(0)?;
    // COMMAND may have any words.
    let word = OsStr::from_bytes(b"\xff");
    let mut compared = Held::command(&[&target]);
    compared.args(["--", "test"]).arg(word).arg("=").arg(word);
    run(&mut compared)?.expect(0)?;
    Ok(())
}

fn one_guard(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    let pid_file = super::scratch("pid");
    held.sh(&format!("echo $$ > {}", pid_file.display()))?;
    let holder: u64 = fs::read_to_string(pid_file)?.trim().parse()?;
    for _ in 0..2 {
        let path = target.freezer().display().to_string();
        tool(["write", "write", &path, hierarchy.thawed()])?.expect(libc::EBUSY)?;
    }
    target.expect_refused("cgroup.procs", "1")?;

    let guards = guards()?;
    let [guard] = &guards[..] else {
        anyhow::bail!("not one guard: {guards:?}")
    };
    let list = |name: &str| guard[name].as_array().cloned().unwrap_or_default();
    ensure!(guard["state"] == "CHECKPOINTING", "{guard}");
    ensure!(list("cgroups") == [Value::from(target.text())], "{guard}");
    let holders = list("holder_pids");
    ensure!(
        holders.contains(&holder.into()),
        "{holder} does not hold {guard}"
    );
    let run = u64::try_from(held.process().pid().as_raw())?;
    ensure!(
        holders.contains(&run.into()),
        "`run` ({run}) does not hold {guard}"
    );
    ensure!(
        guard["held_seconds"]
            .as_f64()
            .is_some_and(|s| s > 0.0 && s < 60.0),
        "{guard}"
    );
    let denials = &guard["denials"];
    ensure!(
        denials["freeze"] == 2 && denials["migrate"] == 1 && denials["kill"] == 0,
        "{guard}"
    );
    let intruders = list("intruders");
    ensure!(
        intruders
            .iter()
            .any(|one| one["comm"] == "guest-tool" && one["protection"] == "freeze"),
        "{guard}"
    );
    held.release()?
        .expect(0)?
        .says("refused 3 attempts")?
        .says("by guest-tool (pid ")?;
    Ok(())
}

fn text(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    for arguments in [&["status"][..], &["status", &target.text()]] {
        let finished = guard(arguments)?.expect(0)?;
        for word in ["CHECKPOINTING", &target.text()] {
            ensure!(
                finished.stdout.contains(word),
                "no {word} in:\n{}",
                finished.stdout
            );
        }
    }
    held.release()?.expect(0)?;
    Ok(())
}
