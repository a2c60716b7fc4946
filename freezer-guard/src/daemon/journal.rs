//! Lines of the journal about guards and events.

use freezer_guard::{
    guard::{self, Event, Status, What, refusals, violations},
    words::{escaped, join},
};
use freezer_guard_abi::CgroupKey;
use tracing::{error, info, warn};

use super::metrics::Thaw;

/// `way_out`: the remedy, if the event needs one.
pub(super) fn log(event: &Event, way_out: &str) {
    let Some(by) = &event.by else { return };
    let cgroup = join(&event.cgroups, " ");
    macro_rules! log {
        ($level:ident, $what:literal) => {
            $level!(
                guard = event.guard,
                cgroup,
                intruder_pid = by.pid,
                kind = by.protection,
                event = %event.event,
                $what,
                event.about,
                way_out
            )
        };
    }
    match event.event {
        What::Violation => log!(error, "VIOLATED: {}{}"),
        What::Disturbance => log!(warn, "disturbed before CHECKPOINTING: {}{}"),
        _ => log!(warn, "refused {}{}"),
    }
}

pub(super) fn cgroups(status: &Status) -> String {
    join(&status.cgroups, " ")
}

/// Who holds it, if nobody has asked for it.
pub(super) fn by(status: &Status) -> String {
    match (status.automatic, status.holder_pids.first()) {
        (true, Some(pid)) => format!(" for the checkpointer with pid {pid}"),
        (true, None) => " for a checkpointer".to_owned(),
        (false, _) => String::new(),
    }
}

pub(super) fn tell_end(status: &Status) {
    let cgroup = cgroups(status);
    let told = format!(
        "held for {:.1} s, {}",
        status.held_seconds,
        refusals(status)
    );
    if status.violation_count() == 0 {
        info!(
            guard = status.id,
            cgroup,
            kind = "ended",
            "the guard of {} has ended: {told}",
            escaped(&cgroup)
        );
        return;
    }
    error!(
        guard = status.id,
        cgroup,
        kind = "violated",
        "VIOLATED: {} was disturbed while it was CHECKPOINTING: {}; {told}; \
         do not trust this checkpoint",
        escaped(&cgroup),
        violations(status).join("; ")
    );
}

/// Logs which cgroups the service has thawed, since their guard had frozen them.
pub(super) fn tell_thawed(thawed: Vec<CgroupKey>, reason: Thaw) {
    let why = match reason {
        Thaw::Killed => "the holder has ended without a thaw",
        Thaw::Timeout => "the holder has passed `automatic.timeout`",
        Thaw::LongestHold => "the holder has passed `users.longest_hold`",
    };
    for cgroup in thawed.into_iter().map(guard::path) {
        warn!(
            cgroup = %cgroup.display(),
            "thawed {}: its guard had frozen it, and {why}",
            escaped(&cgroup.display().to_string())
        );
    }
}

/// Logs that a cgroup of a dead holder's guard is frozen still.
pub(super) fn tell_not_thawed(error: &guard::Error) {
    warn!(
        "cannot thaw a cgroup that a guard had frozen and whose holder has ended: {}; the service tries \
         again when another guard ends",
        guard::chain(error)
    );
}
