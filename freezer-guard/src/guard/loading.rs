//! The BPF side, there and ready for guards.

use freezer_guard_abi::{Level, LogLevel};

use super::{Error, entries::is_idle, reconcile::reconcile};
use crate::kernel::{self, Locked, Map as _, Maps};

/// The loaded BPF side, with which a guard can begin.
pub(super) struct Loaded {
    pub(super) maps: Maps,
    /// Whether it was there before.
    pub(super) was_loaded: bool,
    /// Why it does not go further, as far as the load has shown it.
    pub(super) reasons: Vec<kernel::Error>,
    /// Why this host does not go further, if it does not.
    pub(super) why_no_stronger: Option<kernel::Error>,
}

/// Loads the BPF side if it is not there. `log`: how much it shall tell; `None`: as it is.
/// `reload`: also if no guard is in force, and what is loaded has another level.
pub(super) fn ensure_loaded(
    lock: &Locked,
    at_most: Level,
    log: Option<LogLevel>,
    reload: bool,
) -> Result<Loaded, Error> {
    let (strongest, why_no_stronger) = Locked::strongest(at_most)?;
    let loaded = |maps, was_loaded, reasons| Loaded {
        maps,
        was_loaded,
        reasons,
        why_no_stronger,
    };
    if let Some(maps) = lock.open()? {
        reconcile(&maps)?;
        // An unload loses candidates and the records of ended guards. So it waits for them.
        let is_empty =
            maps.guards.find(&|_, _| true)?.is_none() && maps.ended.find(&|_, _| true)?.is_none();
        let tells_other = is_empty && log.is_some_and(|log| log != lock.log_level());
        let is_another = tells_other || lock.level() != Some(strongest);
        if !(reload && is_another && is_idle(&maps)?) {
            return Ok(loaded(maps, true, Vec::new()));
        }
        lock.unload()?;
    }
    let (maps, reasons) = lock.load(at_most, log.unwrap_or_default())?;
    Ok(loaded(maps, false, reasons))
}
