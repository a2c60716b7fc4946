//! Completion on the command line: candidates that this host has.
//!
//! A shell runs freezer-guard with an environment variable at each press of the tab key. So a
//! completer prints no error, does not wait, and loads no BPF programs.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::{Command, ValueHint};
use clap_complete::{
    CompleteEnv, CompletionCandidate,
    engine::{ArgValueCompleter, PathCompleter, ValueCompleter},
};
use freezer_guard::{
    cgroup,
    guard::{self, Status},
    kernel::may_use_bpf,
    words::{escaped, join},
};

use super::{client, error::Result, target::UNIT_SUFFIXES};

/// The environment variable that asks for completion.
pub(super) const VARIABLE: &str = "COMPLETE";

/// How long a completer may take to find the guards in force.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Completes, and exits, if the environment asks for it. A shell passes the words of the command
/// line after `--`, and none to get its script. With a subcommand the variable means nothing: a
/// checkpoint must not fail to run because the environment has it by accident.
pub(super) fn asked(command: fn() -> Command) {
    if env::args_os().nth(1).is_none_or(|first| first == "--") {
        CompleteEnv::with_factory(|| with_plain_paths(command()))
            .var(VARIABLE)
            .complete();
    }
}

/// Gives each path of a command a completer that offers no name that a shell would change: a user
/// can call a file `$(reboot)`.
fn with_plain_paths(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let is_path = matches!(
            argument.get_value_hint(),
            ValueHint::AnyPath
                | ValueHint::FilePath
                | ValueHint::DirPath
                | ValueHint::ExecutablePath
        );
        match is_path && argument.get::<ArgValueCompleter>().is_none() {
            true => argument.add(ArgValueCompleter::new(paths)),
            false => argument,
        }
    });
    command.mut_subcommands(with_plain_paths)
}

/// Completes a path.
fn paths(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = PathCompleter::any().complete(current);
    candidates.retain(|candidate| candidate.get_value().to_str().is_some_and(is_plain));
    candidates
}

/// Completes a cgroup: a directory, or a systemd unit that is running.
pub(super) fn cgroups_and_units(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = Vec::new();
    if !current.as_encoded_bytes().contains(&b'/') {
        candidates.extend(units(current));
    }
    candidates.extend(cgroups(current));
    candidates
}

/// Completes the directory of a cgroup.
pub(super) fn cgroups(current: &OsStr) -> Vec<CompletionCandidate> {
    let mounts = mounts();
    let Some(text) = current.to_str() else {
        return Vec::new();
    };
    if text.is_empty() {
        return mounts.iter().filter_map(|mount| candidate(mount)).collect();
    }
    let (dir, begin) = text
        .rsplit_once('/')
        .map_or(("", text), |(dir, begin)| (&text[..=dir.len()], begin));
    let mut candidates: Vec<_> = subdirectories(Path::new(match dir {
        "" => ".",
        dir => dir,
    }))
    .into_iter()
    .filter(|(name, _)| name.starts_with(begin))
    // Cgroups, and the way to them.
    .filter(|(_, path)| {
        let path = path.canonicalize().unwrap_or_default();
        let mut mounts = mounts.iter();
        mounts.any(|mount| path.starts_with(mount) || mount.starts_with(&path))
    })
    .filter_map(|(name, _)| candidate(&Path::new(dir).join(name)))
    .collect();
    candidates.sort();
    candidates
}

/// Completes a systemd unit that is running and whose cgroup has a freezer.
pub(super) fn units(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut units = Vec::new();
    for root in mounts() {
        find_units(&root, &mut units);
    }
    units.sort();
    units.dedup();
    let current = current.to_str().unwrap_or_default();
    let units = units.into_iter().filter(|unit| unit.starts_with(current));
    units.map(CompletionCandidate::new).collect()
}

/// Completes COMMAND and its arguments: a program in PATH, or a path.
pub(super) struct CommandCompleter;

impl ValueCompleter for CommandCompleter {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        paths(current)
    }

    fn complete_at(&self, index: usize, current: &OsStr) -> Vec<CompletionCandidate> {
        let begin = current
            .to_str()
            .filter(|text| !text.is_empty() && !text.contains('/'));
        let mut candidates = self.complete(current);
        if let (0, Some(begin)) = (index, begin) {
            let path = env::var_os("PATH").unwrap_or_default();
            let entries = env::split_paths(&path).filter_map(|dir| fs::read_dir(dir).ok());
            let names = entries
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut names: Vec<_> = names
                .filter(|name| name.starts_with(begin) && is_plain(name))
                .collect();
            names.sort();
            names.dedup();
            candidates.extend(names.into_iter().map(CompletionCandidate::new));
        }
        candidates
    }
}

/// Completes the id of a guard in force, with its cgroups as help.
pub(super) fn guards(current: &OsStr) -> Vec<CompletionCandidate> {
    let (sender, receiver) = mpsc::channel();
    // A thread that waits for a lock or for the service ends with this process.
    thread::spawn(move || sender.send(in_force()));
    let guards = match receiver.recv_timeout(TIMEOUT) {
        Ok(Ok(guards)) => guards,
        _ => Vec::new(),
    };
    candidates_of(&guards, current)
}

/// Asks the service if it is running, or else the kernel: a connection to the socket would start the
/// service.
fn in_force() -> Result<Vec<Status>> {
    let unit = "system.slice/freezer-guard.service";
    // In v2, or in systemd's own hierarchy beside v1's freezer.
    let mounts = mounts().into_iter();
    let mut roots = mounts.flat_map(|mount| [mount.with_file_name("systemd"), mount]);
    if roots.any(|root| root.join(unit).is_dir()) {
        return client::block_on(client::list());
    }
    may_use_bpf()?;
    Ok(guard::list()?)
}

fn candidates_of(guards: &[Status], current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_str().unwrap_or_default();
    let candidates = guards.iter().map(|guard| {
        let cgroups = escaped(&join(&guard.cgroups, ", ")).into_owned();
        (guard.id.to_string(), cgroups)
    });
    candidates
        .filter(|(id, _)| id.starts_with(current))
        .map(|(id, cgroups)| CompletionCandidate::new(id).help(Some(cgroups.into())))
        .collect()
}

/// The mounts of cgroups with freezers.
fn mounts() -> Vec<PathBuf> {
    let mounts = [cgroup::freezer_mount(), cgroup::unified_mount()];
    mounts.into_iter().flatten().flatten().collect()
}

/// Returns the directory with a slash at its end; `None`: a shell would change its name.
fn candidate(path: &Path) -> Option<CompletionCandidate> {
    let text = path.to_str()?;
    is_plain(text).then(|| CompletionCandidate::new(format!("{}/", text.trim_end_matches('/'))))
}

fn is_plain(text: &str) -> bool {
    text.chars()
        .all(|letter| letter.is_alphanumeric() || "/._-+:@,=%".contains(letter))
}

fn subdirectories(dir: &Path) -> Vec<(String, PathBuf)> {
    let read = || -> io::Result<Vec<_>> {
        let entries = fs::read_dir(dir)?.filter_map(Result::ok);
        let dirs = entries.filter(|entry| entry.path().is_dir());
        let named = dirs.filter_map(|dir| Some((dir.file_name().into_string().ok()?, dir.path())));
        Ok(named.collect())
    };
    read().unwrap_or_default()
}

/// Units have their cgroups in slices: those in other units belong to another manager.
fn find_units(dir: &Path, units: &mut Vec<String>) {
    for (name, path) in subdirectories(dir) {
        // systemd.resource-control(5): a name that the kernel reserves has an underscore before it.
        let unit = name.strip_prefix('_').unwrap_or(&name);
        if UNIT_SUFFIXES.iter().any(|suffix| unit.ends_with(suffix)) && is_plain(unit) {
            units.push(unit.to_owned());
        }
        if unit.ends_with(".slice") {
            find_units(&path, units);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_found_in_slices_only() {
        let root = tempfile::tempdir().expect("a folder");
        for dir in [
            "init.scope",
            "system.slice/foo.service/payload",
            "system.slice/system-getty.slice/getty@tty1.service",
            "system.slice/system-a\\x2db.slice",
            "user.slice/user-0.slice/user@0.service/app.slice/other.service",
            "machine/bar.service",
            "_cpu.slice",
        ] {
            fs::create_dir_all(root.path().join(dir)).expect("a folder");
        }
        let mut units = Vec::new();
        find_units(root.path(), &mut units);
        units.sort();
        let expected = [
            "cpu.slice",
            "foo.service",
            "getty@tty1.service",
            "init.scope",
            "system-getty.slice",
            "system.slice",
            "user-0.slice",
            "user.slice",
            "user@0.service",
        ];
        assert_eq!(units, expected);
    }

    #[test]
    fn a_guard_is_completed_by_its_id_with_its_cgroups() {
        let guard: Status = serde_json::from_str(GUARD).expect("a guard");
        let guards = [guard.clone(), Status { id: 71, ..guard }];
        let all = candidates_of(&guards, OsStr::new("7"));
        let ids: Vec<_> = all.iter().map(|candidate| candidate.get_value()).collect();
        assert_eq!(ids, ["7", "71"]);
        let help = all[0].get_help().map(ToString::to_string);
        assert_eq!(help.as_deref(), Some("/sys/fs/cgroup/app"));
        assert_eq!(candidates_of(&guards, OsStr::new("72")).len(), 0);
    }

    /// One guard.
    const GUARD: &str = r#"{
        "id": 7, "state": "CHECKPOINTING", "automatic": true, "cgroups": ["/sys/fs/cgroup/app"],
        "holder_pids": [1], "begun": "2026-01-01T00:00:00.000Z", "checkpointing": null,
        "held_seconds": 1.5, "level": "enforce", "levels": {}, "allowed": [], "denials": {},
        "violations": {}, "repaired": {}, "missed": 0, "froze": false, "intruders": [],
        "violators": []
    }"#;

    #[test]
    fn a_name_that_a_shell_would_change_is_no_candidate() {
        for path in ["/a b", "/a\\x2db", "/$a", "/a\nb", "/a'b"] {
            assert!(candidate(Path::new(path)).is_none(), "{path:?}");
        }
        let plain = candidate(Path::new("/sys/fs/cgroup/a@b.service"));
        let plain = plain.map(|plain| plain.get_value().to_owned());
        assert_eq!(
            plain.as_deref(),
            Some(OsStr::new("/sys/fs/cgroup/a@b.service/"))
        );
    }
}
