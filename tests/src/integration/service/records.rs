//! The records that the service keeps: metrics, and the history of guards.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    super::{
        cgroups::{Cgroup, Hierarchy},
        process::{Held, guard},
    },
    CONFIG, eventually, systemctl,
};

pub(super) fn metrics(hierarchy: Hierarchy) -> Result<()> {
    let dir = Path::new("/var/lib/prometheus/node-exporter");
    fs::create_dir_all(dir)?;
    let before = fs::read_to_string(CONFIG)?;
    let file = dir.join("freezer-guard.prom");
    let features = dir.join("features");
    fs::write(
        CONFIG,
        format!("[metrics]\ntextfile = {file:?}\nnode_features = {features:?}\n"),
    )?;
    // Its sandbox was made before the directory.
    systemctl(&["restart", "freezer-guard"])?.expect(0)?;
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    eventually("the file tells of it", || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        Ok(
            text.contains("freezer_guard_denied_total{kind=\"freeze\"} 1\n")
                && text.contains("freezer_guard_guards_active 0\n")
                && text.contains("freezer_guard_hold_seconds_count 1\n"),
        )
    })?;
    eventually("the file for labels tells the level", || {
        let text = fs::read_to_string(&features).unwrap_or_default();
        Ok(text.starts_with("# +expiry-time=") && text.contains("/freezer-guard.level=enforce\n"))
    })?;
    fs::write(CONFIG, before)?;
    systemctl(&["reload", "freezer-guard"])?.expect(0)?;
    Ok(())
}

/// The report of a guard from the service's history and from the journal.
pub(super) fn report(hierarchy: Hierarchy) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let held = Held::new(&[&target])?;
    target.expect_refused(hierarchy.file(), hierarchy.thawed())?;
    held.release()?.expect(0)?;
    let mut report = Value::Null;
    eventually("it is remembered", || {
        let shown = guard(["report", "--last", "--json"])?;
        report = serde_json::from_str(&shown.stdout).unwrap_or_default();
        Ok(report["about"]
            .as_str()
            .is_some_and(|about| about.ends_with(&target.text())))
    })?;
    ensure!(report["verdict"] == "undisturbed", "{report}");
    let moments = report["timeline"].as_array().context("a timeline")?;
    let kinds: Vec<_> = moments
        .iter()
        .filter_map(|moment| moment["kind"].as_str())
        .collect();
    ensure!(
        kinds == ["begun", "checkpointing", "refused", "ended"],
        "{report}"
    );
    let facts = report["facts"].as_array().context("facts")?;
    ensure!(
        facts.iter().any(|fact| fact["name"] == "holder"),
        "nothing of the journal: {report}"
    );
    let text = guard(["report", "--last"])?.expect(0)?.stdout;
    ensure!(text.contains("  verdict       undisturbed"), "{text}");
    guard(["report", "--last", "100000"])?
        .expect(64)?
        .says("there is no --last 100000")?;
    Ok(())
}
