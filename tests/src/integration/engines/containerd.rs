//! containerd, by its own client. containerd's shim starts runc, and runc starts CRIU.
//!
//! `ctr` restores only images of `containers checkpoint`, which leaves the container running:
//! it pauses the container, has it dumped, and resumes it. `tasks checkpoint --exit` ends the
//! container, and `ctr` has no command that restores its image.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use super::{
    super::{
        cgroups::within,
        process::{LONG, run},
        service::systemctl,
    },
    engine::{self, Ending, Engine, Home, Kind, PROGRAM, SLICE, State, Verb, command, quietly},
    image,
};

/// containerd with `ctr`.
pub(super) struct Containerd;

impl Containerd {
    /// The name that an image of a checkpoint gets in containerd's store.
    fn checkpoint_name(home: &Home, name: &str) -> String {
        format!("localhost/{}:{name}", home.id)
    }
}

const NAMESPACE: &str = "default";

impl Engine for Containerd {
    fn title(&self) -> &'static str {
        "containerd"
    }

    fn versions(&self) -> Result<String> {
        let runc = engine::version("runc")?;
        Ok(format!("{}, {runc}", engine::version("containerd")?))
    }

    fn is_in(&self, release: &str) -> bool {
        release != "bookworm"
    }

    fn daemon(&self) -> Option<&'static str> {
        Some("containerd")
    }

    fn ending(&self) -> Ending {
        Ending::Final
    }

    fn prepare(&self) -> Result<()> {
        systemctl(&["start", "containerd"])?.expect(0)?;
        image::import(NAMESPACE)
    }

    fn start(&self, home: &Home) -> Result<()> {
        let id = &*home.id;
        let cgroup = format!("{SLICE}:ctr:{id}");
        let counters = home.counters();
        let mount = format!(
            "type=bind,src={},dst=/count,options=rbind:rw",
            counters.display()
        );
        let mut run = ctr(NAMESPACE, &["run", "--detach", "--net-host"]);
        run.args(["--runc-systemd-cgroup", "--cgroup", &cgroup]);
        run.args(["--mount", &mount, image::NAME, id]);
        quietly(run.args(PROGRAM))
    }

    fn checkpoint(&self, home: &Home, name: &str, kind: Kind<'_>) -> Result<Command> {
        if kind.leave_running {
            // containerd 1.7 leaves CRIU's image out of a checkpoint, and says nothing, if its
            // store has the container's configuration from an earlier one (containerd's pull
            // request 8145). The tests restore the last checkpoint only.
            drop_images(home);
            let name = Self::checkpoint_name(home, name);
            let words = ["containers", "checkpoint", "--rw", "--task"];
            let mut command = ctr(NAMESPACE, &words);
            command.args([&home.id, &name]);
            return Ok(command);
        }
        let work = home.image(&format!("{name}.work"));
        fs::create_dir_all(&work)?;
        let mut command = ctr(NAMESPACE, &["tasks", "checkpoint", "--exit"]);
        command.arg("--image-path").arg(home.image(name));
        command.arg("--work-path").arg(work).arg(&home.id);
        Ok(command)
    }

    /// The container that was left running goes first.
    fn restore(&self, home: &Home, name: &str) -> Result<()> {
        within(LONG, "the old container goes", || {
            forget(home);
            let left = run(&mut ctr(NAMESPACE, &["containers", "ls", "-q"]))?.expect(0)?;
            Ok(!left.stdout.lines().any(|id| id == home.id))
        })?;
        let name = Self::checkpoint_name(home, name);
        let words = ["containers", "restore", "--live", "--rw", &home.id, &name];
        quietly(&mut ctr(NAMESPACE, &words))
    }

    fn inspect(&self, home: &Home) -> Result<Option<(State, i32)>> {
        task(NAMESPACE, &home.id)
    }

    fn verb(&self, home: &Home, verb: Verb) -> Option<Command> {
        let id = &*home.id;
        let exec = ["exec", "--exec-id", "help", id, "/guest-tool", "--help"];
        let words = match verb {
            Verb::Pause => &["pause", id][..],
            Verb::Resume => &["resume", id],
            Verb::Exec => &exec,
            Verb::Update | Verb::RestartAlways => return None,
            Verb::Kill => &["kill", "-s", "KILL", id],
            Verb::Stop => &["kill", "-s", "TERM", id],
            Verb::Remove => &["delete", "-f", id],
        };
        let mut command = ctr(NAMESPACE, &["tasks"]);
        command.args(words);
        Some(command)
    }

    fn remove(&self, home: &Home) {
        forget(home);
        // Nothing needs them any more, and the disk is small.
        drop_images(home);
    }
}

/// Removes the container's checkpoints and their content.
fn drop_images(home: &Home) {
    let begin = Containerd::checkpoint_name(home, "");
    for name in image::names(NAMESPACE).unwrap_or_default().lines() {
        if name.starts_with(&begin) {
            let _ = run(&mut ctr(NAMESPACE, &["images", "rm", "--sync", name]));
        }
    }
}

/// Ends the task, and deletes the container.
fn forget(home: &Home) {
    for words in [&["tasks", "delete", "-f"][..], &["containers", "delete"]] {
        // It may have gone, or never have come.
        let _ = run(ctr(NAMESPACE, words).arg(&home.id));
    }
}

/// Returns the command of containerd's client, in one of containerd's namespaces.
pub(super) fn ctr(namespace: &str, words: &[&str]) -> Command {
    let mut command = command("ctr", &["--namespace", namespace]);
    command.args(words);
    command
}

/// Returns state and first process of a task.
pub(super) fn task(namespace: &str, id: &str) -> Result<Option<(State, i32)>> {
    let tasks = run(&mut ctr(namespace, &["tasks", "ls"]))?.expect(0)?;
    // TASK, PID, STATUS
    let task = tasks.stdout.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == id).then(|| words.collect::<Vec<_>>())
    });
    let Some(task) = task else { return Ok(None) };
    let [pid, state] = task[..] else {
        anyhow::bail!("not a task: {task:?}");
    };
    Ok(Some((State::of(state), pid.parse().context("a pid")?)))
}
