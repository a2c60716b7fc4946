//! The way out of the kernel.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::programs::{ProgramInfo, loaded_programs};

use super::{Error, pins::Locked};
use crate::sys;

impl Locked {
    /// Detaches and removes everything but the directory and the maps of readers of events.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn unload(&self) -> Result<(), Error> {
        let mut pins = self.pins()?;
        // The mark of completeness goes first.
        pins.sort_by_key(|path| !is_control(path));
        for path in pins {
            fs::remove_file(&path).map_err(Error::failed(format!("remove {}", path.display())))?;
        }
        Ok(())
    }

    /// Unloads everything, and returns when no program refuses anything any more: the kernel
    /// detaches in the background, some milliseconds after the pin of a link is gone.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn unload_and_wait(&self) -> Result<(), Error> {
        const TIMEOUT: Duration = Duration::from_secs(10);
        const PAUSE: Duration = Duration::from_millis(2);
        let ids: BTreeSet<_> = self
            .pins()?
            .iter()
            .filter_map(|pin| attached(pin))
            .collect();
        self.unload()?;
        let start = Instant::now();
        // A link loses its id before it is detached, its program after that (`bpf_link_free`).
        let is_ours = |program: &ProgramInfo| ids.contains(&program.id());
        while loaded_programs().flatten().any(|program| is_ours(&program))
            && start.elapsed() < TIMEOUT
        {
            sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether [`Locked::unload`] has anything to remove.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn is_loaded(&self) -> Result<bool, Error> {
        Ok(!self.pins()?.is_empty())
    }
}

/// The id of the program that a link attaches, if one is pinned there (`bpf_link_show_fdinfo`).
fn attached(pin: &Path) -> Option<u32> {
    let link = sys::open_pin(pin).ok()?;
    sys::fdinfo(&link, "link_id").ok()??;
    sys::fdinfo(&link, "prog_id").ok()??.try_into().ok()
}

fn is_control(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"control-"))
}
