//! What `doctor` says, and that it leaves nothing.

use std::{
    env, fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    List,
    cgroups::{Cgroup, Hierarchy, eventually},
    has_bpf, levels,
    lifecycle::expect_clean,
    process::{Finished, Held, expect_version, guard, run},
    scratch_folder,
};

pub(super) fn list(list: &mut List<'_>) {
    list.add("tells_the_truth", truth);
}

/// Where it finds more than an unused host.
pub(super) fn list_beside(list: &mut List<'_>) {
    list.add("beside_a_guard", beside);
    list.add("bundle_names_nothing_private", bundle);
    list.add("after_a_crash", after_crash);
    list.add("other_user", other_user);
    list.add("tells_which_criu_is_not_guarded", not_guarded);
}

/// What it finds, which is as good as its exit code says.
pub(super) fn doctor() -> Result<Value> {
    let finished = guard(["doctor", "--json"])?;
    let report: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("not JSON: {:?}", finished.stdout))?;
    expect_version(&report)?;
    let code = ["good", "limited", "unusable"]
        .iter()
        .position(|verdict| report["verdict"] == **verdict);
    // For whoever collects what works where.
    println!("doctor: {report}");
    ensure!(
        code == usize::try_from(finished.code).ok(),
        "ended with {}: {report}",
        finished.code
    );
    Ok(report)
}

fn check<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = report["checks"].as_array().context("a list")?;
    let check = checks.iter().find(|check| check["name"] == name);
    check.with_context(|| format!("nothing about {name}: {report}"))
}

fn truth(hierarchy: Hierarchy) -> Result<()> {
    let report = doctor()?;
    let finding = &check(&report, "kernel")?["finding"];
    ensure!(
        finding
            .as_str()
            .is_some_and(|text| text.contains("tested with each release")),
        "`TESTED` does not name this kernel: {finding}"
    );
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(report["kernel"] == release.trim(), "{report}");
    for name in [
        "kernel",
        "BTF",
        "security modules",
        "lockdown",
        "preemption",
        "capabilities",
        "bpffs",
        "guards",
        "cgroups",
        "CRIU",
        "automatic guards",
        "engines",
        match hierarchy {
            Hierarchy::V1 => "guard on v1",
            Hierarchy::V2 => "guard on v2",
        },
    ] {
        let expected = match name {
            "preemption" if is_real_time()? => "limited",
            "security modules" | "guard on v1" | "guard on v2" if !has_bpf()? => "limited",
            _ => "good",
        };
        let check = check(&report, name)?;
        ensure!(check["verdict"] == expected, "{check}");
    }
    let level = levels::strongest()?;
    for protection in ["freeze", "kill", "migrate", "ptrace"] {
        ensure!(report["levels"][protection] == level, "{report}");
    }
    let programs = report["programs"].as_array().context("a list")?;
    ensure!(!programs.is_empty(), "{report}");
    ensure!(
        programs.iter().all(|program| program["loaded"] == true),
        "{report}"
    );
    for program in programs
        .iter()
        .filter(|program| program["attached"] == true)
    {
        let name = program["name"].as_str().unwrap_or_default();
        let may_be_unknown = name == "set_swbp_exit" || name == "task_free" && is_rcu_late()?;
        let is_untried = may_be_unknown && program["calls"].is_null();
        let is_called = program["calls"].as_u64().is_some_and(|calls| calls > 0);
        ensure!(is_untried || is_called, "is it called? {program}");
    }
    let text = guard(["doctor", "--verbose"])?.stdout;
    ensure!(text.contains("This host can guard checkpoints"), "{text}");
    ensure!(text.contains("file_permission"), "{text}");
    let left = fs::read_dir(hierarchy.root())?
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().contains("doctor"));
    ensure!(!left, "a cgroup is left");
    expect_clean()
}

/// Whether the kernel has `CONFIG_PREEMPT_RT`, where `doctor` knows a limit.
fn is_real_time() -> Result<bool> {
    Ok(fs::read_to_string("/proc/sys/kernel/version")?.contains("PREEMPT_RT"))
}

/// Whether this boot leaves CPUs without a tick, so that RCU takes its time.
fn is_rcu_late() -> Result<bool> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    if !cmdline.contains("nohz_full=1") {
        return Ok(false);
    }
    let without = fs::read_to_string("/sys/devices/system/cpu/nohz_full")?;
    ensure!(without.trim() == "1", "without a tick: {without}");
    Ok(true)
}

fn beside(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let report = doctor()?;
    ensure!(
        check(&report, "guards")?["finding"] == "1 in force",
        "{report}"
    );
    ensure!(
        report["levels"]["freeze"] == levels::strongest()?,
        "{report}"
    );
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    expect_clean()
}

/// Writes a name into the file, and the old one when it goes.
struct Renamed(&'static str, String);

impl Renamed {
    fn new(file: &'static str, name: &str) -> Result<Self> {
        let old = fs::read_to_string(file)?;
        fs::write(file, name)?;
        // `comm` would keep the end of the line.
        Ok(Self(file, old.trim_end().to_owned()))
    }
}

impl Drop for Renamed {
    fn drop(&mut self) {
        // The test has its result.
        let _ = fs::write(self.0, &self.1);
    }
}

/// The host, a process, a cgroup and a directory have names that begin with `secret`.
fn bundle(hierarchy: Hierarchy) -> Result<()> {
    let _host = Renamed::new("/proc/sys/kernel/hostname", "secrethost")?;
    let _process = Renamed::new("/proc/self/comm", "secretprocess")?;
    let secret = hierarchy.root().join("secretcgroup");
    fs::create_dir_all(&secret)?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    let dir = scratch_folder("secretdir")?;
    // It has no automatic guard, and doctor names it.
    fs::write(dir.join("criu"), "#!/bin/sh\n")?;
    fs::set_permissions(dir.join("criu"), fs::Permissions::from_mode(0o755))?;
    let doctor = |file: &str| -> Result<Finished> {
        run(Command::new("freezer-guard")
            .args(["doctor", "--bundle", file])
            .env("PATH", format!("{}:{}", env::var("PATH")?, dir.display()))
            .env("SECRET", "secretvalue"))
    };
    let file = dir.join("bundle.json");
    let path = file.display().to_string();
    let told = doctor(&path)?.expect(1)?.stdout;
    ensure!(told.contains("secretdir") && told.contains(&path), "{told}");
    let mode = fs::metadata(&file)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    let text = fs::read_to_string(&file)?;
    // The initramfs has none.
    let machine_id = fs::read_to_string("/etc/machine-id");
    let machine_id = machine_id.unwrap_or_else(|_| "secret".to_owned());
    for name in [
        "secret",
        &target.path.file_name().context("a name")?.to_string_lossy(),
        &env::var("PATH")?,
        fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim(),
        machine_id.trim(),
    ] {
        ensure!(!text.contains(name), "it has {name}: {text}");
    }
    let bundle: Value = serde_json::from_str(&text)?;
    expect_version(&bundle)?;
    let names = bundle["checks"].as_array().context("a list")?.iter();
    ensure!(
        names.filter(|check| check["finding"].is_null()).count() >= 2,
        "{text}"
    );
    ensure!(
        bundle["kernel"]["types"]["fields"]["cgroup.kn"].is_u64(),
        "{text}"
    );
    // It is decided alike elsewhere.
    let replayed = run(Command::new("freezer-guard").args(["replay", &path]))?;
    replayed.expect(0)?;
    doctor(&path)?.says("it exists: name a new file")?;
    let printed: Value = serde_json::from_str(&doctor("-")?.expect(1)?.stdout)?;
    ensure!(printed["kernel"] == bundle["kernel"], "{printed}");
    held.release()?.expect(0)?;
    fs::remove_dir(&secret)?;
    fs::remove_dir_all(&dir)?;
    expect_clean()
}

fn after_crash(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut held = Held::new(&[&target])?;
    held.process().signal(Signal::SIGKILL)?;
    eventually("the kill", || held.process().has_ended())?;
    held.process().close_input();
    eventually("the guard goes", || Ok(target.thaw().is_ok()))?;
    let report = doctor()?;
    let finding = &check(&report, "guards")?["finding"];
    ensure!(
        finding
            .as_str()
            .is_some_and(|text| text.contains("stay loaded")),
        "{finding}"
    );
    // What the crash has left attached is detached.
    expect_clean()
}

fn other_user(_: Hierarchy) -> Result<()> {
    let finished = run(Command::new("freezer-guard")
        .arg("doctor")
        .uid(65534)
        .gid(65534))?;
    let finished = finished.expect(2)?;
    ensure!(
        finished.stdout.contains("run it as root"),
        "{}",
        finished.stdout
    );
    expect_clean()
}

/// The service takes none of these for a checkpointer.
fn not_guarded(_: Hierarchy) -> Result<()> {
    let dir = scratch_folder("bin")?;
    let criu = dir.join("criu");
    let found = || -> Result<String> {
        let path = format!("{}:{}", env::var("PATH")?, dir.display());
        let found = run(Command::new("freezer-guard")
            .arg("doctor")
            .env("PATH", path))?;
        Ok(found.expect(1)?.stdout)
    };
    let expect = |why: &str| -> Result<()> {
        let (words, found) = (
            format!("{} has no automatic guard: {why}", criu.display()),
            found()?,
        );
        ensure!(found.contains(&words), "{found}");
        Ok(())
    };
    fs::copy("/bin/sh", &criu)?;
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o775))?;
    expect("users other than root may write to it")?;
    chown(&criu, Some(1000), None)?;
    expect("root does not own it")?;
    fs::remove_file(&criu)?;
    fs::write(&criu, "#!/bin/sh\n")?;
    expect("it is a script")?;
    fs::remove_dir_all(&dir)?;
    expect_clean()
}
