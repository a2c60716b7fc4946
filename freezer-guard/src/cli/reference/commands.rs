//! The parts of the commands' reference that the command line does not have: examples, exit codes,
//! files, and references to other pages.

use crate::cli::exit::{
    BUSY, CANNOT_EXECUTE, Code, INTERNAL, NOT_FOUND, PERMISSION, UNSUPPORTED, USAGE, VIOLATED,
};

/// The reference of a command.
pub(super) struct Reference {
    /// The command, without `freezer-guard`.
    pub(super) command: &'static str,
    /// The purpose and the command lines of each example.
    pub(super) examples: &'static [(&'static str, &'static str)],
    /// The exit codes that only this command has, or that mean something special for it.
    pub(super) own_codes: &'static [(&'static str, &'static str)],
    /// The exit codes of [`MEANINGS`](crate::cli::exit::MEANINGS) that it has.
    pub(super) codes: &'static [Code],
    /// Files, with their purpose.
    pub(super) files: &'static [(&'static str, &'static str)],
    /// Environment variables, with their effect.
    pub(super) environment: &'static [(&'static str, &'static str)],
    /// Other manual pages.
    pub(super) see_also: &'static [&'static str],
}

const CONFIGURATION: (&str, &str) = (
    "/etc/freezer-guard/config.toml",
    "The configuration of the service: see `freezer-guard.toml`(5).",
);
const SOCKET: (&str, &str) = (
    "/run/freezer-guard/io.freezerguard",
    "The socket of the service: see `io.freezerguard`(7).",
);
const PINS: (&str, &str) = (
    "/sys/fs/bpf/freezer-guard",
    "The state of all guards: BPF maps and programs.",
);
const HISTORY: (&str, &str) = (
    "/var/lib/freezer-guard/last.json",
    "The last 64 guards that have ended, which the service keeps over a reboot.",
);
const EVIDENCE: (&str, &str) = (
    "DIR/freezer-guard.json",
    "The evidence of the image: the verdict, the guard, the refused processes.",
);
const SUCCESS: (&str, &str) = ("0", "success");
const OF_COMMAND: (&str, &str) = ("N", crate::cli::exit::OF_COMMAND);
const PATH: (&str, &str) = (
    "PATH",
    "The directories in which freezer-guard looks for COMMAND and for CRIU.",
);
const OF_RUN: &[Code] = &[
    USAGE,
    UNSUPPORTED,
    INTERNAL,
    VIOLATED,
    BUSY,
    PERMISSION,
    CANNOT_EXECUTE,
    NOT_FOUND,
];
const OF_QUERY: &[Code] = &[USAGE, UNSUPPORTED, INTERNAL, PERMISSION];

/// The reference of the program as a whole.
pub(super) const PROGRAM: Reference = Reference {
    command: "",
    examples: &[
        (
            "Check whether this host can guard checkpoints:",
            "freezer-guard doctor",
        ),
        (
            "Checkpoint a systemd service with CRIU, and restore it:",
            "freezer-guard checkpoint --unit foo.service --images-dir /var/lib/checkpoints/foo\n\
             freezer-guard restore --images-dir /var/lib/checkpoints/foo",
        ),
        (
            "Guard a checkpoint that your own command makes:",
            "freezer-guard run --cgroup /sys/fs/cgroup/foo --freeze -- \\\n    \
             criu dump -t PID -D image --freeze-cgroup /sys/fs/cgroup/foo",
        ),
        (
            "Guard all checkpoints of this host, and look at the last ones:",
            "systemctl enable --now freezer-guard.socket freezer-guard.service\n\
             freezer-guard status --last",
        ),
    ],
    own_codes: &[OF_COMMAND],
    codes: OF_RUN,
    files: &[CONFIGURATION, SOCKET, PINS, HISTORY],
    environment: &[PATH],
    see_also: &[
        "freezer-guard.toml(5)",
        "io.freezerguard(7)",
        "criu(8)",
        "cgroups(7)",
        "bpf(2)",
    ],
};

/// The reference of each command.
pub(super) const COMMANDS: &[Reference] = &[
    Reference {
        command: "run",
        examples: &[
            (
                "Guard a dump by CRIU. CRIU freezes the cgroup, so freezer-guard freezes it first:",
                "freezer-guard run --cgroup /sys/fs/cgroup/foo --freeze -- \\\n    \
                 criu dump -t PID -D image --freeze-cgroup /sys/fs/cgroup/foo",
            ),
            (
                "Guard a script that dumps a systemd service, for at most five minutes, and print each \
                 refused attempt:",
                "freezer-guard run --cgroup foo.service --freeze --timeout 5m --verbose -- ./dump.sh",
            ),
            (
                "Guard a dump by CRIU without the freezer, which needs `--thaw`:",
                "freezer-guard run --pid PID --freeze --thaw -- criu dump -t PID -D image",
            ),
            (
                "Allow a debugger to trace the tasks meanwhile:",
                "freezer-guard run --cgroup /sys/fs/cgroup/foo --freeze --allow ptrace -- ./dump.sh",
            ),
        ],
        own_codes: &[(
            "N",
            "the exit code of COMMAND, or 128+N if signal N has ended it",
        )],
        codes: OF_RUN,
        files: &[PINS],
        environment: &[PATH],
        see_also: &[
            "freezer-guard-checkpoint(1)",
            "freezer-guard-verify(1)",
            "criu(8)",
        ],
    },
    Reference {
        command: "checkpoint",
        examples: &[
            (
                "Checkpoint a systemd service, and end it:",
                "freezer-guard checkpoint --unit foo.service --images-dir /var/lib/checkpoints/foo",
            ),
            (
                "Checkpoint a process tree with open TCP connections, and let it run on:",
                "freezer-guard checkpoint --pid PID --images-dir image --leave-running -- \
                 --tcp-established",
            ),
            (
                "Dump the memory first, so that the checkpoint stops the tree for a shorter time:",
                "freezer-guard checkpoint --cgroup /sys/fs/cgroup/foo --images-dir pre --pre-dump\n\
                 freezer-guard checkpoint --cgroup /sys/fs/cgroup/foo --images-dir image --parent pre",
            ),
        ],
        own_codes: &[
            (
                "N",
                "the exit code of CRIU, or 128+N if signal N has ended it",
            ),
            (
                "64",
                "wrong usage, or the directory of the image exists and is not empty",
            ),
        ],
        codes: OF_RUN,
        files: &[
            EVIDENCE,
            ("DIR/dump.log", "The log of CRIU."),
            ("DIR.unfinished", "The image while CRIU writes it."),
            ("DIR.failed", "The files of a checkpoint that failed."),
            (
                "DIR.violated",
                "An image that was disturbed. Do not restore it.",
            ),
        ],
        environment: &[PATH],
        see_also: &[
            "freezer-guard-restore(1)",
            "freezer-guard-run(1)",
            "criu(8)",
        ],
    },
    Reference {
        command: "restore",
        examples: &[
            (
                "Restore a checkpoint into the cgroup that it was in:",
                "freezer-guard restore --images-dir /var/lib/checkpoints/foo",
            ),
            (
                "Restore it into another cgroup, and guard that one:",
                "freezer-guard restore --images-dir image --cgroup /sys/fs/cgroup/bar -- \
                 --cgroup-root /bar",
            ),
        ],
        own_codes: &[
            (
                "N",
                "the exit code of CRIU, or 128+N if signal N has ended it",
            ),
            ("64", "wrong usage, or the image is not good"),
            (
                "75",
                "busy, or CRIU has restored a task outside of the guarded cgroups",
            ),
        ],
        codes: OF_RUN,
        files: &[EVIDENCE, ("DIR/restore.log", "The log of CRIU.")],
        environment: &[PATH],
        see_also: &["freezer-guard-checkpoint(1)", "criu(8)"],
    },
    Reference {
        command: "verify",
        examples: &[
            (
                "Check a process tree before a checkpoint:",
                "freezer-guard verify --pid PID",
            ),
            (
                "Check that it is in the cgroup of a systemd service:",
                "freezer-guard verify --pid PID --cgroup foo.service",
            ),
        ],
        own_codes: &[
            (
                "0",
                "the whole tree is in the cgroups, and no process traces it",
            ),
            (
                "75",
                "a task of the tree is outside of the cgroups, or another process traces it",
            ),
        ],
        codes: &[USAGE, INTERNAL, BUSY, PERMISSION],
        files: &[],
        environment: &[],
        see_also: &["freezer-guard-run(1)", "cgroups(7)"],
    },
    Reference {
        command: "status",
        examples: &[
            ("Show all guards in force:", "freezer-guard status"),
            (
                "Show one cgroup:",
                "freezer-guard status /sys/fs/cgroup/foo",
            ),
            (
                "Watch all guards in a live table:",
                "freezer-guard status --watch",
            ),
            (
                "Print the last guards for a program:",
                "freezer-guard status --last --json",
            ),
        ],
        own_codes: &[
            SUCCESS,
            ("75", "another version of freezer-guard holds guards"),
        ],
        codes: OF_QUERY,
        files: &[SOCKET, PINS, HISTORY],
        environment: &[],
        see_also: &["freezer-guard-events(1)", "io.freezerguard(7)"],
    },
    Reference {
        command: "report",
        examples: &[
            (
                "Show a checkpoint as a timeline:",
                "freezer-guard report /var/lib/checkpoints/foo",
            ),
            (
                "Draw the guard that ended last:",
                "freezer-guard report --last --svg -o last.svg",
            ),
        ],
        own_codes: &[SUCCESS],
        codes: OF_QUERY,
        files: &[EVIDENCE, HISTORY],
        environment: &[],
        see_also: &["freezer-guard-checkpoint(1)", "freezer-guard-status(1)"],
    },
    Reference {
        command: "events",
        examples: &[
            (
                "Follow the events of all guards:",
                "freezer-guard events --follow",
            ),
            (
                "Print violations only, with jq:",
                "freezer-guard events --follow --json | jq 'select(.event == \"violation\")'",
            ),
        ],
        own_codes: &[
            SUCCESS,
            (
                "75",
                "another version of freezer-guard holds guards, or 16 processes follow the events already",
            ),
        ],
        codes: OF_QUERY,
        files: &[SOCKET, PINS],
        environment: &[],
        see_also: &["freezer-guard-status(1)", "io.freezerguard(7)"],
    },
    Reference {
        command: "doctor",
        examples: &[
            ("Check this host:", "freezer-guard doctor"),
            (
                "Check in a script that this host can guard without limits:",
                "freezer-guard doctor --json | jq -e '.verdict == \"good\"'",
            ),
        ],
        own_codes: &[
            ("0", "this host can guard checkpoints"),
            ("1", "this host can guard checkpoints, within limits"),
            ("2", "this host cannot guard checkpoints"),
        ],
        codes: &[USAGE],
        files: &[PINS],
        environment: &[PATH],
        see_also: &["freezer-guard(1)", "criu(8)"],
    },
    Reference {
        command: "end",
        examples: &[
            (
                "End the guard of a cgroup whose checkpointer hangs:",
                "freezer-guard end /sys/fs/cgroup/foo --force",
            ),
            (
                "End a guard by the id that `status` shows:",
                "freezer-guard end --guard 12 --force",
            ),
            ("End all guards:", "freezer-guard end --all --force"),
        ],
        own_codes: &[
            SUCCESS,
            (
                "75",
                "there is no such guard in force, or another version of freezer-guard holds it (see `--all`)",
            ),
        ],
        codes: &[USAGE, UNSUPPORTED, INTERNAL, BUSY, PERMISSION],
        files: &[SOCKET, PINS],
        environment: &[],
        see_also: &["freezer-guard-status(1)", "io.freezerguard(7)"],
    },
    Reference {
        command: "unload",
        examples: &[(
            "Stop the service, and unload the BPF programs:",
            "systemctl stop freezer-guard.socket freezer-guard.service\nfreezer-guard unload",
        )],
        own_codes: &[SUCCESS, ("75", "a guard is in force, or the service runs")],
        codes: &[USAGE, INTERNAL, BUSY, PERMISSION],
        files: &[PINS],
        environment: &[],
        see_also: &["freezer-guard-end(1)", "freezer-guard-daemon(1)"],
    },
    Reference {
        command: "daemon",
        examples: &[
            (
                "Start the service:",
                "systemctl enable --now freezer-guard.socket freezer-guard.service",
            ),
            (
                "Run it in a terminal, and see why a `criu` is no checkpointer:",
                "freezer-guard daemon --kernel-log debug",
            ),
            (
                "Serve the metrics over HTTP, in a container without systemd:",
                "freezer-guard daemon --metrics 127.0.0.1:9948",
            ),
        ],
        own_codes: &[
            ("0", "a signal has ended the service"),
            ("64", "the configuration is not valid"),
            ("75", "another service runs"),
        ],
        codes: &[USAGE, UNSUPPORTED, INTERNAL, PERMISSION],
        files: &[CONFIGURATION, SOCKET, PINS, HISTORY],
        environment: &[(
            "NO_COLOR",
            "If it is set, the log on a terminal has no colours.",
        )],
        see_also: &[
            "freezer-guard.toml(5)",
            "io.freezerguard(7)",
            "freezer-guard-config(1)",
            "systemctl(1)",
            "journalctl(1)",
        ],
    },
    Reference {
        command: "config",
        examples: &[(
            "Check the configuration, and reload it:",
            "freezer-guard config check && systemctl reload freezer-guard",
        )],
        own_codes: &[
            SUCCESS,
            ("64", "wrong usage, or the configuration is not valid"),
        ],
        codes: &[USAGE, INTERNAL],
        files: &[CONFIGURATION],
        environment: &[],
        see_also: &["freezer-guard.toml(5)", "freezer-guard-daemon(1)"],
    },
    Reference {
        command: "config check",
        examples: &[
            ("Check the configuration:", "freezer-guard config check"),
            (
                "Check another file before you install it:",
                "freezer-guard config check ./config.toml",
            ),
        ],
        own_codes: &[
            ("0", "the configuration is valid"),
            ("64", "the configuration is not valid"),
        ],
        codes: &[USAGE, INTERNAL],
        files: &[CONFIGURATION],
        environment: &[],
        see_also: &["freezer-guard.toml(5)", "freezer-guard-daemon(1)"],
    },
];

/// Returns the reference of a command.
pub(super) fn of(command: &str) -> Option<&'static Reference> {
    match command {
        "" => Some(&PROGRAM),
        _ => COMMANDS
            .iter()
            .find(|reference| reference.command == command),
    }
}
