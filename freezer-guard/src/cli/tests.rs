//! The command line, and the exit codes of errors.

use clap::{CommandFactory as _, Parser as _};
use freezer_guard::{Kind, cgroup, criu, guard, kernel};

use super::{
    Cli,
    error::Error,
    exit::{BUSY, Code, INTERNAL, USAGE, VIOLATED},
    reference,
};

fn parses(line: &str) -> bool {
    Cli::try_parse_from(line.split(' ')).is_ok()
}

/// Declares a test for each line: whether it is taken.
macro_rules! lines {
    ($($name:ident: $verdict:literal $line:literal,)+) => {
        $(
            #[test]
            fn $name() {
                assert_eq!(parses($line), $verdict, "{}", $line);
            }
        )+
    };
}

lines! {
    run_takes_a_cgroup: true "freezer-guard run --cgroup /x -- true",
    run_takes_several_cgroups: true "freezer-guard run --cgroup /x --cgroup /y -- true",
    run_takes_a_pid: true "freezer-guard run --pid 12 -- true",
    run_wants_something_to_guard: false "freezer-guard run -- true",
    run_wants_a_command: false "freezer-guard run --cgroup /x",
    run_takes_no_command_without_dashes: false "freezer-guard run --cgroup /x true",
    run_freezes_and_thaws: true "freezer-guard run --freeze --thaw --cgroup /x -- true",
    run_takes_times_with_units: true "freezer-guard run --timeout 5m --freeze-timeout 1s --cgroup /x -- true",
    run_waits: true "freezer-guard run --wait --cgroup /x -- true",
    run_waits_for_a_time: true "freezer-guard run --wait=5m --cgroup /x -- true",
    run_takes_no_time_to_wait_as_a_word: false "freezer-guard run --wait 5m --cgroup /x -- true",
    run_takes_no_time_without_a_unit: false "freezer-guard run --timeout 5 --cgroup /x -- true",
    run_lifts_protections: true "freezer-guard run --allow kill --allow ptrace --cgroup /x -- true",
    run_lifts_no_other: false "freezer-guard run --allow thaw --cgroup /x -- true",
    run_takes_levels: true "freezer-guard run --level detect --require detect --cgroup /x -- true",
    run_takes_no_other_level: false "freezer-guard run --require most --cgroup /x -- true",
    run_takes_a_policy: true "freezer-guard run --on-violation kill --cgroup /x -- true",
    run_is_not_quiet_and_verbose: false "freezer-guard run -q -v --cgroup /x -- true",
    checkpoint_takes_one_target: true "freezer-guard checkpoint -t 12 -D /d",
    checkpoint_takes_a_unit: true "freezer-guard checkpoint --unit foo.service -D /d",
    checkpoint_takes_several_trees: true "freezer-guard checkpoint -t 12 --cgroup /x -D /d",
    checkpoint_wants_a_target: false "freezer-guard checkpoint -D /d",
    checkpoint_wants_images: false "freezer-guard checkpoint -t 12",
    a_pre_dump_leaves_the_tree_running_anyway: false "freezer-guard checkpoint -t 12 -D /d --pre-dump -R",
    restore_takes_images: true "freezer-guard restore -D /d",
    restore_wants_images: false "freezer-guard restore",
    status_takes_a_path: true "freezer-guard status /x",
    status_of_the_last_takes_no_path: false "freezer-guard status --last /x",
    status_watches: true "freezer-guard status --watch",
    status_watches_in_other_steps: true "freezer-guard status --watch=0.5 --json",
    status_watches_no_single_cgroup: false "freezer-guard status --watch /x",
    status_asks_the_service: true "freezer-guard status --service --last",
    status_watches_not_by_the_service_alone: false "freezer-guard status --service --watch",
    status_watches_nothing_that_ended: false "freezer-guard status --watch --last",
    status_takes_no_steps_of_nothing: false "freezer-guard status --watch=0",
    status_takes_no_steps_without_end: false "freezer-guard status --watch=inf",
    status_takes_no_steps_with_a_unit: false "freezer-guard status --watch=1s",
    report_takes_an_image: true "freezer-guard report /d",
    report_takes_the_last: true "freezer-guard report --last",
    report_takes_one_before: true "freezer-guard report --last 3 --json",
    report_counts_from_one: false "freezer-guard report --last 0",
    report_wants_something: false "freezer-guard report",
    report_takes_no_two: false "freezer-guard report /d --last",
    report_draws_into_a_file: true "freezer-guard report /d --svg -o /f",
    report_has_one_form: false "freezer-guard report /d --svg --html",
    events_follow: true "freezer-guard events -f --json",
    end_takes_an_id: true "freezer-guard end --force --guard 12",
    end_takes_all: true "freezer-guard end --all --force",
    end_wants_something: false "freezer-guard end --force",
    end_takes_no_two: false "freezer-guard end --force --all --guard 12",
    doctor_is_not_json_and_verbose: false "freezer-guard doctor --json --verbose",
    doctor_writes_a_bundle: true "freezer-guard doctor --bundle -",
    doctor_writes_no_bundle_and_is_verbose: false "freezer-guard doctor --verbose --bundle -",
    verify_wants_a_pid: false "freezer-guard verify --cgroup /x",
    daemon_takes_a_log_level: true "freezer-guard daemon --kernel-log debug",
    daemon_takes_no_other_log_level: false "freezer-guard daemon --kernel-log loud",
    nothing_is_no_command: false "freezer-guard",
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// Every section that a message names is in the documentation.
#[test]
fn sections_of_the_troubleshooting_page_are_there() {
    let page = include_str!("../../../docs/guide/troubleshooting.md");
    for code in (0..=u8::MAX).map(Code) {
        let Some(help) = code.help() else { continue };
        let (_, section) = help.split_once('#').expect("it names a section");
        assert!(page.contains(&format!("id=\"{section}\"")), "{section}");
    }
}

fn code(error: impl Into<Error>) -> Code {
    error.into().code()
}

fn io(kind: std::io::ErrorKind) -> cgroup::Error {
    cgroup::Error::Io {
        operation: "open",
        path: "/x".into(),
        source: kind.into(),
    }
}

#[test]
fn a_wrong_path_is_wrong_usage() {
    assert_eq!(code(io(std::io::ErrorKind::NotFound)), USAGE);
    assert_eq!(code(cgroup::Error::NotACgroup("/x".into())), USAGE);
}

#[test]
fn an_image_of_another_program_is_wrong_usage() {
    assert_eq!(code(criu::Error::NoEvidence("/x".into())), USAGE);
    assert_eq!(
        code(Error::NotRemembered {
            known: 0,
            wanted: 1
        }),
        USAGE
    );
}

#[test]
fn a_wrong_file_for_output_is_wrong_usage() {
    let error = |kind: std::io::ErrorKind| Error::Output {
        path: "/x".into(),
        source: kind.into(),
    };
    assert_eq!(code(error(std::io::ErrorKind::NotFound)), USAGE);
    assert_eq!(code(error(std::io::ErrorKind::StorageFull)), INTERNAL);
}

#[test]
fn a_refused_write_is_busy() {
    assert_eq!(code(io(std::io::ErrorKind::ResourceBusy)), BUSY);
}

#[test]
fn a_forbidden_path_is_a_matter_of_permission() {
    assert_eq!(code(io(std::io::ErrorKind::PermissionDenied)), Code(77));
}

#[test]
fn a_full_map_is_busy() {
    let error = guard::Error::Kernel(kernel::Error::Full("GUARDS"));
    assert_eq!(code(error), BUSY);
}

#[test]
fn a_guard_that_was_ended_is_violated() {
    assert_eq!(code(guard::Error::WasGone("/x".into())), VIOLATED);
}

#[test]
fn what_the_kernel_cannot_do_is_unavailable() {
    assert_eq!(code(kernel::Error::LockedDown), Code(69));
    assert_eq!(code(guard::Error::PidNamespace), Code(69));
}

#[test]
fn an_unknown_error_is_internal() {
    assert_eq!(code(std::io::Error::other("x")), INTERNAL);
}

#[test]
fn a_load_that_is_forbidden_is_a_matter_of_permission() {
    let error = |errno| kernel::Error::Load {
        program: "x",
        source: std::io::Error::from_raw_os_error(errno),
        log: String::new(),
    };
    assert_eq!(error(libc::EPERM).kind(), Kind::Permission);
    assert_eq!(error(libc::EINVAL).kind(), Kind::Unsupported);
}

/// As the manual pages have them.
#[test]
fn the_help_of_a_command_has_its_examples() {
    let help = |name: &str| {
        let mut command = reference::with_examples(Cli::command());
        let inner = command.find_subcommand_mut(name).expect("a command");
        inner.render_long_help().to_string()
    };
    let run = help("run");
    let (_, examples) = run.split_once("Examples:\n").expect("examples");
    assert!(
        examples.contains("\n    freezer-guard run --pid PID --freeze --thaw -- criu dump"),
        "{run}"
    );
    assert!(!run.ends_with("\n\n"), "{run:?}");
    let checkpoint = help("checkpoint");
    assert!(checkpoint.contains("  freezer-guard checkpoint --unit foo.service"));
}
