//! This program as CRIU's action script, which CRIU asks when the images are written
//! and the tasks still wait. A failure makes CRIU let them run on: a tree without a good
//! image must not be lost.

use std::{
    env, fs,
    os::unix::{fs::MetadataExt as _, process::parent_id},
    path::{Path, PathBuf},
    process::ExitCode,
};

use freezer_guard::{
    criu::{self, Draft},
    guard::{self, Status, violations},
    kernel,
};
use procfs::process::Process;

use super::{
    client,
    error::{Error, Result},
    exit,
    guarded::Meeting,
    say::say,
};

/// criu(8), `--action-script`: the stage that it has come to.
const STAGE: &str = "CRTOOLS_SCRIPT_ACTION";
/// The directory of images.
const FOLDER: &str = "CRTOOLS_IMAGE_DIR";

/// What to give to CRIU: it is executed as it stands, without arguments. (A path below `/proc`
/// would name this very program only for as long as we run: then another process may have our
/// pid, and CRIU would execute that one's program, as root.)
pub(super) fn script() -> Result<PathBuf> {
    let path = env::current_exe().map_err(Error::io("find this program's file"))?;
    match path.is_file() {
        true => Ok(path),
        false => Err(Error::Unexpected(
            "this program has been replaced since it was started: start it again".to_owned(),
        )),
    }
}

/// The answer, if it is CRIU that asks.
pub(super) fn asked() -> Option<ExitCode> {
    let stage = env::var(STAGE).ok()?;
    if env::args_os().len() > 1 {
        return None;
    }
    Some(match stage.as_str() {
        "post-dump" => answer().unwrap_or_else(|error| {
            say(format_args!("{}", guard::chain(&error)));
            error.code().into()
        }),
        _ => ExitCode::SUCCESS,
    })
}

/// Whether the guard whose checkpointer we belong to is there, and has held so far. Where the tasks
/// are about to end, the images and their evidence have reached the disk before.
fn answer() -> Result<ExitCode> {
    let dir = env::var_os(FOLDER)
        .ok_or_else(|| Error::Unexpected(format!("CRIU does not set {FOLDER}")))?;
    let dir = Path::new(&dir);
    let mut draft = Draft::read(dir)?;
    let Some(mut guard) = holding_guard(draft.excuses)? else {
        return Ok(exit::VIOLATED.into());
    };
    let leaves_running = leaves_running()?;
    if !leaves_running {
        criu::sync(dir)?;
        // That can take long.
        match holding_guard(draft.excuses)? {
            Some(later) => guard = later,
            None => return Ok(exit::VIOLATED.into()),
        }
    }
    // From here on the others may end their trees. Before, no evidence calls this image good.
    if draft.is_one_of_several && !Meeting::attend(dir).unwrap_or(false) {
        // This goes to CRIU's log only.
        say(format_args!(
            "the checkpoint of another tree has failed: CRIU must not end this tree, since freezer-guard keeps the images of all or of none"
        ));
        draft.give_way(dir)?;
        return Ok(exit::INTERNAL.into());
    }
    if !leaves_running {
        draft.complete(dir, &guard)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The guard that we belong to, if freezer-guard awaits the image and the guard has held so far.
fn holding_guard(excuses: bool) -> Result<Option<Status>> {
    if !is_awaited()? {
        say(format_args!(
            "freezer-guard, which began this checkpoint, has ended: CRIU must not end the tree, since nobody would call the image good"
        ));
        return Ok(None);
    }
    let guard = match own_guard()? {
        // Its status after the proof.
        Some(guard) if kernel::may_use_bpf().is_ok() => guard::prove(guard.id)?,
        guard => guard,
    };
    let Some(guard) = guard else {
        say(format_args!(
            "another process ended the guard of this checkpoint"
        ));
        return Ok(None);
    };
    if guard.violation_count() > 0 && !excuses {
        say(format_args!("VIOLATED: {}", violations(&guard).join("; ")));
        return Ok(None);
    }
    Ok(Some(guard))
}

/// Whether CRIU's parent is still the program that has started it, which is this one.
fn is_awaited() -> Result<bool> {
    let criu = Process::new(parent_id().cast_signed()).and_then(|criu| criu.stat());
    let criu = criu.map_err(|error| Error::Unexpected(format!("find CRIU: {error}")))?;
    let parent = format!("/proc/{}/exe", criu.ppid);
    let (own, parents) = (fs::metadata("/proc/self/exe")?, fs::metadata(parent));
    Ok(parents.is_ok_and(|parents| (parents.dev(), parents.ino()) == (own.dev(), own.ino())))
}

fn own_guard() -> Result<Option<Status>> {
    let own = std::process::id();
    let guards = match kernel::may_use_bpf() {
        Ok(()) => guard::list()?,
        Err(_) => client::block_on(client::list())?,
    };
    let mut guards = guards.into_iter();
    Ok(guards.find(|guard| guard.holder_pids.contains(&own)))
}

/// Whether CRIU, which has started us, will let the tasks run on anyhow.
fn leaves_running() -> Result<bool> {
    let path = format!("/proc/{}/cmdline", parent_id());
    let words = fs::read(&path).map_err(Error::io(format!("read {path}")))?;
    let mut words = words.split(|byte| *byte == 0);
    Ok(words.any(|word| [&b"--leave-running"[..], b"-R"].contains(&word)))
}
