//! Completion, as a shell asks for it: the program runs with an environment variable.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_freezer-guard");

/// Runs a command, which prints no error and does not wait.
fn quiet(command: &mut Command) -> String {
    let start = Instant::now();
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("it can be executed");
    let errors = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success() && errors.is_empty(), "{status}: {errors}");
    assert!(start.elapsed() < Duration::from_secs(5), "it has waited");
    String::from_utf8(stdout).expect("it prints text")
}

/// Returns the candidates for the last of these words, as bash gets them.
fn candidates(words: &[&str]) -> Vec<String> {
    let output = quiet(
        Command::new(PROGRAM)
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
            .env("_CLAP_IFS", "\n")
            .args(["--", "freezer-guard"])
            .args(words),
    );
    output.lines().map(str::to_owned).collect()
}

#[test]
fn commands_options_and_values_are_completed() {
    assert_eq!(candidates(&["chec"]), ["checkpoint"]);
    assert_eq!(candidates(&["run", "--freeze-t"]), ["--freeze-timeout"]);
    assert_eq!(candidates(&["run", "--level", "d"]), ["detect"]);
    assert_eq!(
        candidates(&["config", ""]).first().map(String::as_str),
        Some("check")
    );
}

#[test]
fn a_cgroup_is_completed_by_a_directory_of_cgroups() {
    for words in [
        &["run", "--cgroup", "/sys/fs/cgr"][..],
        &["status", "/sys/fs/cgr"],
        &["end", "/sys/fs/cgr"],
        &["checkpoint", "--cgroup", "/sys/fs/cgr"],
        &["restore", "--cgroup", "/sys/fs/cgr"],
    ] {
        // This host may have no cgroups at all.
        let is_mounted = is_mount("/sys/fs/cgroup");
        let expected: &[&str] = if is_mounted {
            &["/sys/fs/cgroup/"]
        } else {
            &[]
        };
        assert_eq!(candidates(words), expected, "{words:?}");
    }
    for candidate in candidates(&["run", "--cgroup", "/sys/fs/cgroup/"]) {
        assert!(Path::new(&candidate).is_dir(), "{candidate}");
    }
    assert!(candidates(&["run", "--cgroup", "/et"]).is_empty());
}

/// Whether cgroups with a freezer are mounted here or below.
fn is_mount(path: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("there is /proc");
    mounts.lines().any(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let is_v2 = words[2] == "cgroup2";
        let is_freezer = words[2] == "cgroup" && words[3].split(',').any(|word| word == "freezer");
        words[1].starts_with(path) && (is_v2 || is_freezer)
    })
}

#[test]
fn a_command_is_completed_by_a_program_or_a_path() {
    assert!(candidates(&["run", "--cgroup", "/x", "--", "bas"]).contains(&"bash".to_owned()));
    let candidates = candidates(&["run", "--cgroup", "/x", "--", "sh", "/pro"]);
    assert_eq!(candidates, ["/proc/"]);
}

/// A shell would execute such a name.
#[test]
fn a_name_that_a_shell_would_change_is_not_completed() {
    let dir = tempfile::tempdir().expect("there is room");
    for name in ["plain", "x;id", "$(id)", "*", "a b", "a\u{b}b"] {
        std::fs::write(dir.path().join(name), "").expect("there is room");
    }
    let begin = format!("{}/", dir.path().display());
    let plain = format!("{begin}plain");
    for words in [
        &["report"][..],
        &["report", "--last", "-o"],
        &["checkpoint", "-D"],
        &["checkpoint", "--parent"],
        &["checkpoint", "--criu"],
        &["restore", "-D"],
        &["config", "check"],
        &["run", "--cgroup", "/x", "--", "sh"],
    ] {
        let all = candidates(&[words, &[begin.as_str()]].concat());
        assert_eq!(all, [plain.as_str()], "{words:?}");
    }
}

/// CRIU runs the program without arguments, and takes an exit with 0 for a yes.
#[test]
fn an_action_script_completes_nothing() {
    for shell in ["bash", "nothing"] {
        let mut command = Command::new(PROGRAM);
        command.env("COMPLETE", shell);
        command.env("CRTOOLS_SCRIPT_ACTION", "post-dump");
        let output = command.output().expect("it can be executed");
        assert_ne!(output.status.code(), Some(0), "{shell}");
        assert!(output.stdout.is_empty(), "{shell}");
    }
}

#[test]
fn units_are_those_of_systemd() {
    for unit in candidates(&["checkpoint", "--unit", ""]) {
        assert!(unit.contains('.') && !unit.contains('/'), "{unit}");
    }
}

#[test]
fn nothing_wrong_is_completed() {
    for words in [
        &["run", "--pid", ""][..],
        &["verify", "--pid", "1"],
        &["run", "--timeout", ""],
        &["end", "--guard", "x"],
        &["status", "/nowhere/"],
    ] {
        assert!(candidates(words).is_empty(), "{words:?}");
    }
}

#[test]
fn guards_are_completed_without_an_error() {
    for id in candidates(&["end", "--guard", ""]) {
        assert!(id.parse::<u64>().is_ok(), "{id}");
    }
}

#[test]
fn without_the_variable_nothing_is_completed() {
    let output = Command::new(PROGRAM)
        .args(["--", "freezer-guard", "st"])
        .output();
    let output = output.expect("it can be executed");
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
}

/// A variable that the environment has by accident keeps no checkpoint from running.
#[test]
fn a_command_runs_with_the_variable_too() {
    let mut command = Command::new(PROGRAM);
    command
        .env("COMPLETE", "bash")
        .args(["config", "check", "/nowhere"]);
    let output = command.output().expect("it can be executed");
    assert_ne!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
}

/// The script of the packages, in bash itself.
#[test]
fn bash_completes_with_the_installed_script() {
    let dir = tempfile::tempdir().expect("there is room");
    quiet(Command::new(PROGRAM).arg("generate").arg(dir.path()));
    let complete = |words: &str, last: &str, path: &Path| {
        let script = format!(
            "PATH='{}'
             source '{}/freezer-guard.bash'
             COMP_WORDS=(freezer-guard {words} \"{last}\") COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _clap_complete_freezer_guard freezer-guard \"{last}\" ''
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            path.display(),
            dir.path().display()
        );
        let output = quiet(Command::new("bash").args(["--norc", "-c", &script]));
        output.trim_end().to_owned()
    };
    let program = Path::new(PROGRAM).parent().expect("it is in a directory");
    assert_eq!(complete("", "unl", program), "unload");
    assert_eq!(complete("run --on-violation", "k", program), "kill");
    // The program has been removed, and this shell still has the script.
    assert_eq!(complete("", "unl", dir.path()), "");
}
