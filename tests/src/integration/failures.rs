//! Hosts on which not all can be done: one sentence says why, and what to do.
//! The kernel is a real one; what it says of itself is not always true.

use std::{fs, process::Command};

use anyhow::{Result, ensure};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy},
    doctor::doctor,
    levels::{expect_too_weak, strongest},
    lifecycle::{expect_clean, unload},
    process::{Finished, Held, run},
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("no_btf", no_btf);
    list.add("missing_field", missing_field);
    list.add("renamed_field", renamed_field);
    list.add("moved_field", moved_field);
    list.add("wrong_offset", wrong_offset);
    list.add("no_64_bit_enums", no_64_bit_enums);
    list.add("maps_of_older_kernels", older_maps);
    list.add("missing_function_that_counts_members", missing_membership);
    list.add("no_memory_cgroups", no_memory_cgroups);
    if list.hierarchy == Hierarchy::V2 && !list.is_hybrid() {
        list.add("no_freezer_of_v1", no_freezer_of_v1);
    }
    list.add("missing_hook_that_notices", missing_tripwire);
    if list.hierarchy == Hierarchy::V1 {
        list.add("no_number_of_the_freezer", no_freezer_number);
    }
    // Moves on v1 are refused as writes to files.
    if list.hierarchy == Hierarchy::V2 {
        list.add("missing_hook_that_refuses", missing_refusal);
    }
    list.add("never_called", never_called);
    list.add("verifier_refuses", verifier);
    list.add("bpf_is_forbidden", forbidden);
}

/// `run` by way of `guest-tool WAY…`.
fn guarded(way: &[&str], target: &Cgroup, flags: &[&str]) -> Result<Finished> {
    let mut command = Command::new(way[0]);
    command.args(&way[1..]);
    command
        .args(["freezer-guard", "run", "--freeze", "--cgroup"])
        .arg(&target.path);
    run(command.args(flags).args(["--", "echo", "ran"]))
}

/// `doctor` by the same way.
fn doctor_by(way: &[&str]) -> Result<Finished> {
    let mut command = Command::new(way[0]);
    run(command.args(&way[1..]).args(["freezer-guard", "doctor"]))
}

fn expect_not_run(finished: Finished, code: i32, target: &Cgroup) -> Result<Finished> {
    let finished = finished.expect(code)?;
    ensure!(!finished.stdout.contains("ran"), "COMMAND was run");
    // The other line names the section of the documentation.
    let sentences = finished
        .stderr
        .lines()
        .filter(|line| !line.starts_with("freezer-guard: help: "));
    ensure!(
        sentences.count() == 1,
        "not one sentence: {}",
        finished.stderr
    );
    ensure!(target.state()? == "THAWED", "left {}", target.state()?);
    expect_clean()?;
    Ok(finished)
}

fn no_btf(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = ["guest-tool", "hidden", "/sys/kernel/btf", "--"];
    expect_not_run(guarded(&way, &target, &[])?, 69, &target)?
        .says("/sys/kernel/btf/vmlinux")?
        .says("CONFIG_DEBUG_INFO_BTF")?;
    let found = doctor_by(&way)?.expect(2)?.stdout;
    ensure!(found.contains("CONFIG_DEBUG_INFO_BTF"), "{found}");
    expect_clean()
}

/// `guest-tool renamed NAMES…`
fn renamed<'a>(names: &[&'a str]) -> Vec<&'a str> {
    [&["guest-tool", "renamed"], names, &["--"]].concat()
}

fn missing_field(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["s_magic=x_magic"]);
    expect_not_run(guarded(&way, &target, &[])?, 69, &target)?.says("super_block.s_magic")?;
    let found = doctor_by(&way)?.expect(2)?.stdout;
    ensure!(found.contains("lacks super_block.s_magic"), "{found}");
    expect_clean()
}

/// This guard is as good as any on this host.
fn expect_strongest(changes: &[&str], hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let (way, level) = (renamed(changes), strongest()?);
    guarded(&way, &target, &["--require", level])?
        .expect(0)?
        .says(level)?;
    // It is tried out. (CRIU may have limits of its own.)
    let found = doctor_by(&way)?;
    ensure!(found.code < 2, "{}", found.stdout);
    let check = format!(" guard on {} ", hierarchy.name());
    let mut lines = found.stdout.lines();
    let tried = lines.find(|line| line.contains(&check)).unwrap_or_default();
    ensure!(
        tried.contains(level) && tried.contains("a write by another process"),
        "{}",
        found.stdout
    );
    expect_clean()
}

/// By another name that the field has in some releases.
fn renamed_field(hierarchy: Hierarchy) -> Result<()> {
    let btf = fs::read("/sys/kernel/btf/vmlinux")?;
    let is_new = btf.windows(10).any(|name| name == b"\0__parent\0");
    let change = match is_new {
        true => "kernfs_node.__parent=parent",
        false => "kernfs_node.parent=__parent",
    };
    expect_strongest(&[change], hierarchy)
}

/// Into an anonymous struct: the place is the sum of two offsets.
fn moved_field(hierarchy: Hierarchy) -> Result<()> {
    let moved = ["cgroup.kn@nested", "task_struct.cgroups@nested"];
    expect_strongest(&moved, hierarchy)
}

/// BTF that is not the kernel's: the programs do not recognise a write to the freezer. The proof at
/// the begin of a guard notices it. (Many other fields are typed: see [`verifier`].)
fn wrong_offset(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["kernfs_node.id+8"]);
    expect_not_run(guarded(&way, &target, &[])?, 69, &target)?.says("does not call")?;
    doctor_by(&way)?.expect(2)?;
    unload()?;
    expect_clean()
}

/// As `pahole --skip_encoding_btf_enum64` leaves it.
fn no_64_bit_enums(hierarchy: Hierarchy) -> Result<()> {
    expect_strongest(&["no-enum64"], hierarchy)
}

/// The maps take all their memory at once.
fn older_maps(hierarchy: Hierarchy) -> Result<()> {
    expect_strongest(&["bpf_htab.ma"], hierarchy)
}

/// No guard goes without it.
fn missing_membership(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["css_set_move_task=xss_set_move_task"]);
    expect_not_run(guarded(&way, &target, &[])?, 69, &target)?
        .says("no function css_set_move_task")?;
    let found = doctor_by(&way)?.expect(2)?.stdout;
    ensure!(found.contains("no function css_set_move_task"), "{found}");
    expect_clean()
}

/// The programs cannot find a task's freezer.
fn no_freezer_number(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["freezer_cgrp_id=xreezer_cgrp_id"]);
    expect_too_weak(guarded(&way, &target, &[])?, &target)?.says("freezer_cgrp_id")?;
    let found = doctor_by(&way)?.stdout;
    ensure!(found.contains("freezer_cgrp_id"), "{found}");
    ensure!(!found.contains("can guard checkpoints.\n"), "{found}");
    expect_clean()
}

/// The programs cannot tell whose memory is written.
fn no_memory_cgroups(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["mm_struct.owner"]);
    expect_too_weak(guarded(&way, &target, &[])?, &target)?
        .says("(ptrace: missing)")?
        .says("mm_struct.owner")?;
    guarded(&way, &target, &["--allow", "ptrace"])?.expect(0)?;
    let found = doctor_by(&way)?.expect(1)?.stdout;
    ensure!(found.contains("mm_struct.owner"), "{found}");
    expect_clean()
}

/// There is nothing of it to guard.
fn no_freezer_of_v1(hierarchy: Hierarchy) -> Result<()> {
    let missing = [
        "freezer.css",
        "freezer.state",
        "freezer_cgrp_id=xreezer_cgrp_id",
        "freezer_apply_state=xreezer_apply_state",
        "freezer_read=xreezer_read",
    ];
    expect_strongest(&missing, hierarchy)
}

/// What nothing would notice is missing, and only that.
fn missing_tripwire(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["ptrace_attach=xtrace_attach"]);
    expect_too_weak(guarded(&way, &target, &[])?, &target)?
        .says("(ptrace: missing)")?
        .says("no function ptrace_attach")?;
    guarded(&way, &target, &["--allow", "ptrace"])?.expect(0)?;
    let found = doctor_by(&way)?.expect(1)?.stdout;
    ensure!(found.contains("ptrace: missing"), "{found}");
    ensure!(found.contains("no function ptrace_attach"), "{found}");
    expect_clean()
}

/// What cannot be refused is noticed still.
fn missing_refusal(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["cgroup_attach_permissions=xgroup_attach_permissions"]);
    expect_too_weak(guarded(&way, &target, &[])?, &target)?
        .says("(migrate: detect)")?
        .says("cgroup_attach_permissions")?;
    guarded(&way, &target, &["--require", "detect"])?
        .expect(0)?
        .says("migrate: detect")?;
    guarded(&way, &target, &["--allow", "migrate"])?.expect(0)?;
    expect_clean()
}

/// A program on a function that the kernel does not call: it is attached to another one, with the
/// same arguments.
fn never_called(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&["proc_dointvec=proc_dostring", "proc_dostring=proc_dointvec"]);
    let why = "the kernel does not call the BPF program number_set_exit";
    // The second finds the result of the first.
    for _ in 0..2 {
        let finished = guarded(&way, &target, &["--require", "best-effort"])?;
        expect_too_weak(finished, &target)?
            .says("(freeze: detect, kill: detect, migrate: detect, ptrace: detect)")?
            .says(why)?;
    }
    guarded(&way, &target, &["--require", "detect"])?
        .expect(0)?
        .says("detect")?;
    let found = doctor_by(&way)?.expect(1)?.stdout;
    ensure!(found.contains(why), "{found}");
    unload()?;
    guarded(&["env"], &target, &[])?.expect(0)?;
    expect_clean()
}

/// An offset that is wrong: the verifier sees that a load is not what it says.
fn verifier(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = renamed(&[
        "super_block.s_magic=s_blocksize_bits",
        "super_block.s_blocksize_bits=s_magic",
    ]);
    let finished = expect_too_weak(guarded(&way, &target, &[])?, &target)?
        .says("file_permission")?
        .says("of this kernel rejects it")?;
    ensure!(
        !finished.stderr.contains("R1"),
        "a log: {}",
        finished.stderr
    );
    guarded(&way, &target, &["--verbose"])?
        .expect(69)?
        .says("the verifier's log:")?
        .says("R1")?;
    expect_clean()
}

/// A seccomp filter would do the same.
fn forbidden(hierarchy: Hierarchy) -> Result<()> {
    unload()?;
    let target = Cgroup::new(hierarchy)?;
    let way = ["strace", "-o", "/dev/null", "-e", "inject=bpf:error=EPERM"];
    expect_not_run(guarded(&way, &target, &[])?, 77, &target)?.says("seccomp")?;
    let mut held = Held::new(&[&target])?;
    ensure!(held.sh("true")? == 0);
    held.release()?.expect(0)?;
    expect_clean()
}

/// In a boot of its own, on a kernel where no guard can begin.
pub(super) fn list_refused(list: &mut List<'_>) {
    match list.config.boot.is_empty() {
        false => list.add("tells_of_lockdown", |hierarchy| {
            refused(
                hierarchy,
                "locked down",
                "lockdown",
                "boot without lockdown=confidentiality",
            )
        }),
        true => list.add("tells_of_missing_trampolines", |hierarchy| {
            let cause = "attaches no BPF program to a function";
            let check = format!("guard on {}", hierarchy.name());
            refused(
                hierarchy,
                cause,
                &check,
                "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
            )
        }),
    }
}

/// `run` names the cause, and this check of `doctor` the remedy.
fn refused(hierarchy: Hierarchy, cause: &str, check: &str, remedy: &str) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    expect_not_run(guarded(&["env"], &target, &[])?, 69, &target)?.says(cause)?;
    let report = doctor()?;
    ensure!(report["verdict"] == "unusable", "{report}");
    ensure!(report["levels"].is_null(), "{report}");
    let mut checks = report["checks"].as_array().into_iter().flatten();
    let found = checks.find(|found| found["name"] == check);
    let said = found.and_then(|found| found["remedy"].as_str());
    ensure!(said.is_some_and(|said| said.contains(remedy)), "{report}");
    expect_clean()
}
