//! A guard that a client of the socket begins: its arguments, its limits, and its begin.

use std::{
    collections::BTreeSet, os::fd::OwnedFd, path::Path, sync::atomic::Ordering, time::Duration,
};

use freezer_guard::guard::{self, Guard, PidFd, Preparation, Requirements, Status, Target};
use freezer_guard_abi::{Level, MAX_DEPTH_BY_USER, NoSuchName, Protection};

use super::{IS_STOPPING, reply::Error};

/// How long tasks may take to freeze, if the client does not say.
const FREEZE: Duration = Duration::from_secs(10);
/// And at most: for a client that is trusted, and for another.
const LONGEST_FREEZE: Duration = Duration::from_secs(600);
const LONGEST_FREEZE_OF_USER: Duration = Duration::from_secs(60);

/// Returns the process whose pidfd has this place among the descriptors of the call.
pub(super) fn named(holder_fd: Option<i64>, fds: Vec<OwnedFd>) -> Result<Option<PidFd>, Error> {
    let Some(index) = holder_fd else {
        return Ok(None);
    };
    let index = usize::try_from(index).ok();
    let fd = index.and_then(|index| fds.into_iter().nth(index));
    let fd = fd.ok_or_else(|| Error::bad("`holderFd`: no such descriptor came"))?;
    Ok(Some(PidFd::from_fd(fd)))
}

/// Returns the requirements of a guard of this uid. `weakest`: the level that will do if the
/// client names none.
pub(super) fn requirements(
    allow: Vec<String>,
    require: Option<String>,
    weakest: Level,
    uid: u32,
) -> Result<Requirements, Error> {
    let bad = |name: &str, error: NoSuchName| Error::bad(format!("{name:?}: {error}"));
    let protection = |name: String| {
        let parsed = name.parse::<Protection>();
        parsed.map_err(|error| bad(&name, error))
    };
    Ok(Requirements {
        allowed: allow
            .into_iter()
            .map(protection)
            .collect::<Result<_, _>>()?,
        require: Some(match require {
            None => weakest,
            Some(name) => name.parse().map_err(|error| bad(&name, error))?,
        }),
        at_most: Level::Enforce,
        owner: (uid != 0).then_some(uid),
    })
}

/// Returns how long the targets may take to freeze.
pub(super) fn freeze_timeout(seconds: Option<f64>, is_trusted: bool) -> Result<Duration, Error> {
    let timeout = seconds.map(Duration::try_from_secs_f64).transpose();
    let timeout = timeout.map_err(|_| Error::bad("`freezeTimeoutSeconds` is no time"))?;
    let longest = match is_trusted {
        true => LONGEST_FREEZE,
        false => LONGEST_FREEZE_OF_USER,
    };
    Ok(timeout.unwrap_or(FREEZE).min(longest))
}

/// Refuses a user's guard of many cgroups, or of one that lies deep: each of them, and each directory
/// above them, takes room in maps that root's guards need too.
pub(super) fn refuse_many<'a>(
    cgroups: impl Iterator<Item = &'a Path>,
    uid: u32,
) -> Result<(), Error> {
    let all: BTreeSet<_> = cgroups.flat_map(Path::ancestors).collect();
    match all.len() > MAX_DEPTH_BY_USER as usize {
        true => Err(Error::denied(format!(
            "a guard of uid {uid} may cover at most {MAX_DEPTH_BY_USER} directories, those above the \
             cgroups included, and these are {}: guard fewer cgroups, or let root do it",
            all.len()
        ))),
        false => Ok(()),
    }
}

/// Begins a guard, brings it to CHECKPOINTING and hands it over to its holder.
pub(super) fn begin(
    targets: Vec<Target>,
    wanted: &Requirements,
    how: &Preparation,
    caller: u32,
    holder: &PidFd,
) -> Result<Status, guard::Error> {
    refuse_kernel_and_init(holder)?;
    guard::refuse_containing(
        &targets,
        &[
            (1, "init"),
            (std::process::id(), "the service"),
            (caller, "the caller"),
            (holder.pid()?, "the holder"),
        ],
    )?;
    let mut guard = Guard::begin(targets, wanted)?;
    // A holder that has gone needs no guard.
    guard.prepare(how, |_| match IS_STOPPING.load(Ordering::Relaxed) {
        true => Err(guard::Error::Stopping),
        false => holder.pid().map(drop),
    })?;
    guard.hand_over(holder)
}

/// Everything on the host comes from these: all of it would belong to the holder.
fn refuse_kernel_and_init(holder: &PidFd) -> Result<(), guard::Error> {
    let pid = holder.pid()?;
    // A kernel thread executes no file.
    match pid == 1 || std::fs::read_link(format!("/proc/{pid}/exe")).is_err() {
        true => Err(guard::Error::NoHolder(format!(
            "pid {pid} is init or a thread of the kernel"
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_names_nothing_gets_the_defaults() {
        let found = requirements(Vec::new(), None, Level::BestEffort, 0).expect("they are fine");
        assert_eq!(found.require, Some(Level::BestEffort));
        assert_eq!((found.allowed.len(), found.owner), (0, None));
        assert_eq!(freeze_timeout(None, false).ok(), Some(FREEZE));
    }

    #[test]
    fn the_guard_of_a_user_belongs_to_him() {
        let found = requirements(Vec::new(), None, Level::Detect, 1000).expect("they are fine");
        assert_eq!(found.owner, Some(1000));
    }

    #[test]
    fn a_wrong_name_is_a_bad_request() {
        let wrong = requirements(vec!["thaw".to_owned()], None, Level::Detect, 0);
        assert!(matches!(wrong, Err(Error::BadRequest { .. })));
        let wrong = requirements(Vec::new(), Some("most".to_owned()), Level::Detect, 0);
        assert!(matches!(wrong, Err(Error::BadRequest { .. })));
    }

    #[test]
    fn a_user_waits_for_a_freeze_no_longer_than_a_minute() {
        assert_eq!(
            freeze_timeout(Some(1e6), false).ok(),
            Some(LONGEST_FREEZE_OF_USER)
        );
        assert_eq!(freeze_timeout(Some(1e6), true).ok(), Some(LONGEST_FREEZE));
    }

    #[test]
    fn a_time_before_now_is_a_bad_request() {
        for seconds in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(freeze_timeout(Some(seconds), true).is_err(), "{seconds}");
        }
    }

    #[test]
    fn a_user_guards_neither_many_cgroups_nor_deep_ones() {
        let deep = |levels| "/sys/fs/cgroup".to_owned() + &"/a".repeat(levels);
        let refused = |paths: &[String]| refuse_many(paths.iter().map(Path::new), 1000).is_err();
        // `/`, `/sys`, `/sys/fs` and `/sys/fs/cgroup` count too.
        assert!(!refused(&[deep(60)]));
        assert!(refused(&[deep(61)]));
        assert!(
            !refused(&[deep(59), deep(60)]),
            "they share their ancestors"
        );
        let wide: Vec<_> = (0..61)
            .map(|name| deep(0) + "/" + &name.to_string())
            .collect();
        assert!(!refused(&wide[..60]));
        assert!(refused(&wide));
    }
}
