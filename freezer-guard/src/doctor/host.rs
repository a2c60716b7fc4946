//! cgroups, CRIU and engines.

use std::{
    collections::BTreeSet,
    env,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use freezer_guard_abi::FileName;
use nix::sys::statvfs::FsFlags;

use super::Check;
use crate::{
    cgroup,
    criu::{Criu, output_of},
    guard::{automatic, chain},
    kernel::daemon_runs,
};

/// The daemon.
pub(super) fn service() -> Check {
    let finding = match daemon_runs() {
        true => "it runs and keeps the BPF programs loaded",
        false => "it does not run: only `run`, `checkpoint` and `restore` begin guards",
    };
    Check::good("service", finding)
}

pub(super) fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    match (cgroup::freezer_mount(), cgroup::unified_mount()) {
        (Ok(Some(v1)), Ok(Some(v2))) => Check::good(
            NAME,
            format!(
                "hybrid: v1 freezer on {}, v2 on {}",
                v1.display(),
                v2.display()
            ),
        )
        .private(),
        (Ok(Some(v1)), Ok(None)) => {
            Check::good(NAME, format!("v1: freezer on {}", v1.display())).private()
        }
        (Ok(None), Ok(Some(v2))) => Check::good(NAME, format!("v2 on {}", v2.display())).private(),
        (Ok(None), Ok(None)) => Check::unusable(
            NAME,
            "neither the v1 freezer nor v2 is mounted",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
        (Err(error), _) | (_, Err(error)) => Check::unusable(NAME, chain(&error), "mount /proc"),
    }
}

pub(super) fn criu() -> Vec<Check> {
    const NAME: &str = "CRIU";
    let criu = match Criu::find(None) {
        Ok(criu) => criu,
        Err(error) => {
            return vec![
                Check::limited(
                    NAME,
                    chain(&error),
                    "install CRIU, unless you use another checkpointer",
                )
                .private(),
            ];
        }
    };
    let text = criu.version_text();
    let result = criu.check();
    let check = match &result {
        Ok(()) => Check::good(NAME, format!("{text}; `criu check` is fine")),
        Err(error) => Check::limited(
            NAME,
            format!("{text}; {}", chain(error)),
            "see `criu check` for what it needs",
        ),
    };
    let mut checks = vec![check.private()];
    checks.extend(criu.bugs(&result).map(|bug| {
        let finding = format!("{} {}", criu.version(), bug.what);
        Check::limited("CRIU's bugs", finding, bug.remedy)
    }));
    checks
}

/// Whether the service can guard the dumps of each `criu` in PATH, and of each that an engine finds:
/// the same rules as those of the BPF side (`candidate.rs`).
pub(super) fn checkpointers() -> Vec<Check> {
    const NAME: &str = "automatic guards";
    /// Of services, and so of engines that are some (`systemd.exec(5)`).
    const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
    let path = env::var_os("PATH").unwrap_or_default();
    let files: BTreeSet<_> = env::split_paths(&path)
        .chain(env::split_paths(DEFAULT_PATH))
        .filter_map(|dir| dir.join(automatic::CRIU).canonicalize().ok())
        .collect();
    let names = match automatic::checkpointers() {
        Ok(names) => names,
        Err(error) => {
            return vec![
                Check::limited(NAME, chain(&error), "see `freezer-guard status`").private(),
            ];
        }
    };
    let check = |file: PathBuf| match why_not_guarded(&file, &names) {
        Ok(None) => Check::good(NAME, format!("the service can guard {}", file.display())),
        Ok(Some((why, remedy))) => Check::limited(
            NAME,
            format!("{} has no automatic guard: {why}", file.display()),
            remedy,
        ),
        Err(error) => Check::limited(
            NAME,
            format!("cannot read {}: {error}", file.display()),
            "check that its file system answers",
        ),
    };
    files
        .into_iter()
        .map(|file| check(file).private())
        .collect()
}

/// The reason why an executable is no checkpointer for the service, and the remedy.
fn why_not_guarded(
    file: &Path,
    names: &[FileName],
) -> io::Result<Option<(&'static str, &'static str)>> {
    const BY_RUN: &str = "use `freezer-guard run` for its dumps";
    const BY_NAME: &str = "add the file name of the last executed program to \
                           `automatic.names` of /etc/freezer-guard/config.toml";
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Some(("it is not a regular file", BY_RUN)));
    }
    let mount = nix::sys::statvfs::statvfs(file)?.flags();
    let mut start = [0; 2];
    File::open(file)?.read_exact(&mut start)?;
    Ok(if !automatic::is_named(names, file) {
        Some((
            "the file that PATH leads to has none of the names in `automatic.names`",
            BY_NAME,
        ))
    } else if start == *b"#!" {
        let why = "it is a script, and the kernel executes its interpreter";
        Some((why, BY_NAME))
    } else if metadata.uid() != 0 {
        Some(("root does not own it", "chown it to root"))
    } else if metadata.mode() & 0o022 != 0 {
        Some(("users other than root may write to it", "chmod go-w"))
    } else if mount.contains(FsFlags::ST_NOSUID) {
        let why = "its file system is mounted with nosuid";
        Some((why, "remount that with suid, or move the file"))
    } else {
        None
    })
}

pub(super) fn engines() -> Check {
    let found: Vec<_> = ["runc", "crun", "podman", "docker", "containerd", "crio"]
        .into_iter()
        .filter_map(|engine| {
            let (_, output) = output_of(Path::new(engine), &["--version"]).ok()?;
            let first = output.lines().next().unwrap_or(engine).to_owned();
            Some(match first.starts_with(engine) {
                true => first,
                false => format!("{engine}: {first}"),
            })
        })
        .collect();
    Check::good(
        "engines",
        match found.is_empty() {
            true => "none found in PATH".to_owned(),
            false => found.join("; "),
        },
    )
    .private()
}
