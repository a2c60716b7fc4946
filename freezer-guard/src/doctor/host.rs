//! cgroups, CRIU and engines.

use std::path::Path;

use super::Check;
use crate::{
    cgroup,
    criu::{Criu, output_of},
    guard::chain,
    kernel::daemon_runs,
};

/// The daemon.
pub(super) fn service() -> Check {
    let finding = match daemon_runs() {
        true => "it runs, and keeps everything loaded",
        false => "it does not run: guards are begun by `run` alone",
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
        ),
        (Ok(Some(v1)), Ok(None)) => Check::good(NAME, format!("v1: freezer on {}", v1.display())),
        (Ok(None), Ok(Some(v2))) => Check::good(NAME, format!("v2 on {}", v2.display())),
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
            return vec![Check::limited(
                NAME,
                chain(&error),
                "install it, unless another checkpointer is used",
            )];
        }
    };
    let text = criu.version_text();
    let mut checks = vec![match criu.check() {
        Ok(()) => Check::good(NAME, format!("{text}; `criu check` is fine")),
        Err(error) => Check::limited(
            NAME,
            format!("{text}; {}", chain(&error)),
            "see `criu check` for what it needs",
        ),
    }];
    checks.extend(criu.bugs().map(|bug| {
        let finding = format!("{} {}", criu.version(), bug.what);
        Check::limited("CRIU's bugs", finding, bug.remedy)
    }));
    checks
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
}
