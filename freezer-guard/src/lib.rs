//! freezer-guard: while a cgroup is being checkpointed, nobody but the
//! checkpointer freezes, thaws or otherwise disturbs it.
//!
//! [`guard`] is the state machine, [`cgroup`] knows the cgroup file systems,
//! [`kernel`] knows BPF, [`criu`] knows CRIU. See `ARCHITECTURE.md`.

pub mod cgroup;
pub mod criu;
pub mod doctor;
pub mod guard;
pub mod json;
pub mod kernel;
mod kind;
pub mod quirks;
pub mod report;
mod sys;
pub mod words;

pub use kind::Kind;
pub use sys::{is_ignored, passed_descriptors, unblock_in_child, watch_input, watch_signals};

/// The version, and which BPF object is built in.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (BPF object ",
    env!("FREEZER_GUARD_OBJECT_ID"),
    ")"
);
