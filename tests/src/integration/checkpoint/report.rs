//! `report` of images: good, violated, and of another program.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    super::{
        cgroups::Hierarchy,
        process::{LONG, guard, run},
    },
    Scene,
    disturbed::disturb,
};

/// What a checkpoint has from its begin to its end, in this order.
const LIFE: [&str; 6] = [
    "begun",
    "frozen",
    "checkpointing",
    "started",
    "exited",
    "ended",
];

pub(super) fn of_images(hierarchy: Hierarchy) -> Result<()> {
    let scene = Scene::new(hierarchy)?;
    let mut command = scene.checkpoint("image");
    command.args(["--level", "detect", "--leave-running"]);
    scene.expect_good(run(&mut command)?, "image")?;
    let good = json(&scene, "image")?;
    ensure!(good["verdict"] == "good", "{good}");
    let kinds = kinds(&good);
    let life: Vec<_> = kinds
        .iter()
        .filter(|kind| LIFE.contains(&&***kind))
        .collect();
    ensure!(life == LIFE.iter().collect::<Vec<_>>(), "{good}");
    ensure!(
        kinds.iter().filter(|kind| **kind == "criu").count() >= 6
            && good["stats"]["pages_written"].as_u64() > Some(0)
            && good["unknown"].as_array().is_some_and(Vec::is_empty),
        "{good}"
    );

    let mut command = scene.checkpoint("other");
    let process = scene.start_held(command.args(["--level", "detect"]))?;
    disturb(&scene)?;
    scene.go_on()?;
    process.wait(LONG)?.expect(73)?;
    let text = report(&scene, "other.violated", &[])?;
    for words in [
        "other.violated: violated".to_owned(),
        format!("thawed {}", scene.cgroup.text()),
        "CRIU lets the tasks run".to_owned(),
    ] {
        let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(joined.contains(&words), "no {words:?} in:\n{text}");
    }
    let svg = report(&scene, "other.violated", &["--svg"])?;
    ensure!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
        "{svg}"
    );
    let page = scene.place("page.html");
    let page_text = page.display().to_string();
    let printed = report(&scene, "other.violated", &["--html", "-o", &page_text])?;
    ensure!(printed.is_empty(), "{printed}");
    ensure!(fs::read_to_string(page)?.starts_with("<!DOCTYPE html>"));

    let path = scene.place("other").display().to_string();
    guard(["report", &path])?
        .expect(64)?
        .says("other.violated")?;
    fs::remove_file(scene.place("image").join("freezer-guard.json"))?;
    let path = scene.place("image").display().to_string();
    guard(["report", &path])?
        .expect(64)?
        .says("only `freezer-guard checkpoint` writes it")?;
    scene.expect_unharmed()
}

fn report(scene: &Scene, name: &str, options: &[&str]) -> Result<String> {
    let path = scene.place(name).display().to_string();
    let finished = guard([&["report", &path], options].concat())?;
    Ok(finished.expect(0)?.stdout)
}

fn json(scene: &Scene, name: &str) -> Result<Value> {
    let text = report(scene, name, &["--json"])?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text:?}"))
}

fn kinds(report: &Value) -> Vec<String> {
    let moments = report["timeline"].as_array().into_iter().flatten();
    let kinds = moments.filter_map(|moment| moment["kind"].as_str());
    kinds.map(str::to_owned).collect()
}
